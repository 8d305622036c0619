"""What Graft exchanges with other tools: one `Cell` a line for each method, peer and direction. docs/interop.md is rendered from them.

`python tests/interop.py` writes the page; test_interop.py checks that it is what stands here, and that every test named here exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "interop.md"
DIRECTIONS, VERDICTS = ("reads", "writes"), ("exact", "refused")


@dataclass(frozen=True)
class Cell:
    """`direction`: Graft reads the peer's files or writes them. `test` ("test_x.py::test_y" or "...[case]") proves what is exact, or
    shows the sentence of what is refused; `note` says what the cell is about.
    """

    method: str
    peer: str
    direction: str
    verdict: str
    note: str
    test: str


PEFT = "HF PEFT"
RUNS, RUN_BY = "test_parity.py::test_we_run_pefts", "test_parity.py::test_peft_runs_ours"
WRONG = "test_hostile.py::test_wrong_configs"
PEFT_CELLS = [
    Cell("LoRA", PEFT, "reads", "exact", "targets as a list of names", f"{RUNS}[list]"),
    Cell("LoRA", PEFT, "reads", "exact", "targets as a regular expression; `use_rslora`", f"{RUNS}[regex]"),
    Cell("LoRA", PEFT, "reads", "exact", '`target_modules="all-linear"`', f"{RUNS}[all-linear]"),
    Cell("LoRA", PEFT, "reads", "exact", "`exclude_modules`", f"{RUNS}[exclude]"),
    Cell("LoRA", PEFT, "reads", "exact", "Conv1D (`fan_in_fan_out`)", f"{RUNS}[conv1d]"),
    Cell("LoRA", PEFT, "reads", "exact", "fused projections", f"{RUNS}[interleaved]"),
    Cell("LoRA", PEFT, "reads", "exact", "embeddings", f"{RUNS}[embedding]"),
    Cell("LoRA", PEFT, "reads", "exact", "a tied head or embedding", f"{RUNS}[tied]"),
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: a head", f"{RUNS}[saved]"),
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: the head that a classification task adds", f"{RUNS}[classifier]"),
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: all norms", f"{RUNS}[norms]"),
    Cell("LoRA", PEFT, "reads", "refused", "a start that changes the base (PiSSA), not converted", f"{WRONG}[start]"),
    Cell("LoRA", PEFT, "reads", "refused", "`trainable_token_indices`", f"{WRONG}[off_trainable_token_indices]"),
    Cell("LoRA", PEFT, "reads", "refused", "`target_parameters`", f"{WRONG}[off_target_parameters]"),
    Cell("LoRA", PEFT, "reads", "refused", "`layer_replication`", f"{WRONG}[off_layer_replication]"),
    Cell("LoRA", PEFT, "reads", "refused", "variants: aLoRA, QALoRA, BD-LoRA, Arrow, KaSA", f"{WRONG}[off_alora_invocation_tokens]"),
    Cell("LoRA", PEFT, "writes", "exact", "linear maps", f"{RUN_BY}[llama-lora]"),
    Cell("LoRA", PEFT, "writes", "exact", "rsLoRA", f"{RUN_BY}[llama-rslora]"),
    Cell("LoRA", PEFT, "writes", "exact", "Conv1D (`fan_in_fan_out`)", f"{RUN_BY}[gpt2-lora]"),
    Cell("LoRA", PEFT, "writes", "exact", "embeddings", f"{RUN_BY}[llama-lora_embedding]"),
    Cell("LoRA", PEFT, "writes", "exact", "with a trained head", f"{RUN_BY}[llama-lora+head]"),
    Cell("DoRA", PEFT, "reads", "exact", "linear maps", f"{RUNS}[dora]"),
    Cell("DoRA", PEFT, "reads", "exact", "Conv1D (`fan_in_fan_out`)", f"{RUNS}[dora_conv1d]"),
    Cell("DoRA", PEFT, "reads", "exact", "fused projections", f"{RUNS}[fused]"),
    Cell("DoRA", PEFT, "writes", "exact", "linear maps", f"{RUN_BY}[llama-dora]"),
    Cell("DoRA", PEFT, "writes", "exact", "with a trained head", f"{RUN_BY}[bert-dora+head]"),
    Cell("IA3", PEFT, "reads", "exact", "gated MLP: PEFT's input scale at `down` is ours at the output of `up`", f"{RUNS}[ia3]"),
    Cell("IA3", PEFT, "reads", "exact", "Conv1D", f"{RUNS}[ia3_conv1d]"),
    Cell("IA3", PEFT, "reads", "exact", "BERT, where PEFT's own targets also match `attention.output.dense`", f"{RUNS}[ia3_bert]"),
    Cell("IA3", PEFT, "reads", "exact", "any targets and `feedforward_modules`", f"{RUNS}[ia3_other]"),
    Cell("IA3", PEFT, "writes", "exact", "gated MLP", f"{RUN_BY}[llama-ia3]"),
    Cell("IA3", PEFT, "writes", "exact", "BERT", f"{RUN_BY}[bert-ia3]"),
    Cell("Prompt", PEFT, "reads", "exact", "PROMPT_TUNING on decoders", f"{RUNS}[prompt]"),
    Cell("Prompt", PEFT, "reads", "exact", "PROMPT_TUNING on BERT", f"{RUNS}[prompt_bert]"),
    Cell("Prompt", PEFT, "writes", "exact", "PROMPT_TUNING on decoders", f"{RUN_BY}[llama-prompt]"),
    Cell("Prompt", PEFT, "writes", "exact", "PROMPT_TUNING on BERT, with a trained head", f"{RUN_BY}[bert-prompt+head]"),
    Cell("Prefix", PEFT, "reads", "exact", "grouped key-value heads", f"{RUNS}[prefix]"),
    Cell("Prefix", PEFT, "reads", "exact", "one key-value head a query head", f"{RUNS}[prefix_plain]"),
    Cell("Prefix", PEFT, "reads", "exact", "made with `prefix_projection`", f"{RUNS}[prefix_mlp]"),
    Cell("Prefix", PEFT, "writes", "exact", "grouped key-value heads", f"{RUN_BY}[llama-prefix]"),
    Cell("Prefix", PEFT, "writes", "exact", "one key-value head a query head", f"{RUN_BY}[gpt2-prefix]"),
]

CELLS = [*PEFT_CELLS]
HEADING = """# What Graft exchanges with other tools

Each line is proved by the test that it names: *exact* means equal logits in float64 (and, where the test compares them, equal
gradients) on tiny random models, through files, the other tool's own library running its side; *refused* means one clear error
sentence and nothing half done. What is not listed has no form in the other tool, and is saved in Graft's own type.

This page is written by `python tests/interop.py`; a test compares the two.
"""


def render(cells: Sequence[Cell]) -> str:
    """The page: an overview, method by peer and direction, and a table of all cells for each peer."""
    peers = list(dict.fromkeys(cell.peer for cell in cells))
    parts = [HEADING, overview(cells, peers), *(section(peer, [cell for cell in cells if cell.peer == peer]) for peer in peers)]
    return "\n".join(parts)


def overview(cells: Sequence[Cell], peers: Sequence[str]) -> str:
    """One row a method, two columns a peer."""
    columns = [
        (peer, direction) for peer in peers for direction in DIRECTIONS if any((c.peer, c.direction) == (peer, direction) for c in cells)
    ]
    lines = table_head(["method", *(f"{direction} {peer}" for peer, direction in columns)])
    for method in dict.fromkeys(cell.method for cell in cells):
        said = [verdict([c.verdict for c in cells if (c.method, c.peer, c.direction) == (method, *column)]) for column in columns]
        lines.append(row([method, *said]))
    return "\n".join([*lines, ""])


def verdict(found: Sequence[str]) -> str:
    """All verdicts of one method, peer and direction in a few words."""
    refused = found.count("refused")
    if not found:
        return "–"
    return "refused" if refused == len(found) else f"exact, but for {refused} refused" if refused else "exact"


def section(peer: str, cells: Sequence[Cell]) -> str:
    """A peer's cells, one a line."""
    lines = [f"## {peer}", "", *table_head(["method", "Graft", "what", "verdict", "test"])]
    lines += [row([cell.method, cell.direction, cell.note, cell.verdict, f"`{cell.test}`"]) for cell in cells]
    return "\n".join([*lines, ""])


def table_head(names: Sequence[str]) -> list[str]:
    return [row(names), "|" + "---|" * len(names)]


def row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    PAGE.write_text(render(CELLS))
