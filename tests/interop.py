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
TIES = "test_hostile.py::test_ties_that_peft_breaks"
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
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: a module that holds others", f"{RUNS}[saved_container]"),
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: embeddings, a single norm", f"{RUNS}[saved_embedding]"),
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: BERT's pooler beside its head", f"{RUNS}[saved_pooler]"),
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: a tied head, which becomes a copy", f"{RUNS}[tied_head]"),
    Cell("LoRA", PEFT, "reads", "exact", "`modules_to_save`: tied embeddings and head, each a copy", f"{RUNS}[tied_both]"),
    Cell("LoRA", PEFT, "reads", "exact", "`ensure_weight_tying` with saved embeddings, which the head follows", f"{RUNS}[tied_together]"),
    Cell("LoRA", PEFT, "reads", "exact", "`rank_pattern`, `alpha_pattern`", f"{RUNS}[patterns]"),
    Cell("LoRA", PEFT, "reads", "exact", "patterns with `use_rslora`", f"{RUNS}[rslora_patterns]"),
    Cell("LoRA", PEFT, "reads", "exact", "`lora_bias`", f"{RUNS}[lora_bias]"),
    Cell("LoRA", PEFT, "reads", "exact", '`bias="lora_only"`', f"{RUNS}[bias_lora_only]"),
    Cell("LoRA", PEFT, "reads", "exact", '`bias="all"`', f"{RUNS}[bias_all]"),
    Cell("LoRA", PEFT, "reads", "exact", '`bias="all"` beside a saved classifier', f"{RUNS}[bias_classifier]"),
    Cell("LoRA", PEFT, "reads", "exact", "`layers_to_transform` with `layers_pattern`", f"{RUNS}[layers_patterns]"),
    Cell("LoRA", PEFT, "reads", "exact", "`layers_to_transform` beside a whole path, which it does not bind", f"{RUNS}[layer]"),
    Cell("LoRA", PEFT, "reads", "refused", "`modules_to_save`: tied embeddings that leave their head behind", f"{TIES}[embeddings_alone]"),
    Cell("LoRA", PEFT, "reads", "refused", "`ensure_weight_tying` with adapted embeddings", f"{TIES}[adapted_together]"),
    Cell(
        "LoRA",
        PEFT,
        "reads",
        "refused",
        "`modules_to_save`: a module and one that holds it",
        f"{WRONG}[saved_nested]",
    ),
    Cell("LoRA", PEFT, "reads", "refused", "patterns that say two things of one module", f"{WRONG}[alpha_pattern_conflict]"),
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
    Cell("LoRA", PEFT, "writes", "exact", "parts of different rank and alpha, as patterns", f"{RUN_BY}[llama-patterns]"),
    Cell("LoRA", PEFT, "writes", "exact", "`LoRA(bias=True)` as `lora_bias`", f"{RUN_BY}[gpt2-lora_bias]"),
    Cell("LoRA", PEFT, "writes", "exact", "with BiasOnly at the same modules, or at all", f"{RUN_BY}[opt-lora+bias]"),
    Cell("LoRA", PEFT, "writes", "exact", "with tied embeddings trained as a whole", f"{RUN_BY}[llama_bias-lora+embedding]"),
    Cell("LoRA", PEFT, "reads", "exact", "PiSSA and OLoRA after PEFT's own conversion", "test_parity.py::test_what_peft_converted_to_lora"),
    Cell("DoRA", PEFT, "reads", "exact", "linear maps", f"{RUNS}[dora]"),
    Cell("DoRA", PEFT, "reads", "exact", "Conv1D (`fan_in_fan_out`)", f"{RUNS}[dora_conv1d]"),
    Cell("DoRA", PEFT, "reads", "exact", "fused projections", f"{RUNS}[fused]"),
    Cell("DoRA", PEFT, "reads", "exact", "patterns", f"{RUNS}[dora_patterns]"),
    Cell("DoRA", PEFT, "reads", "exact", "embeddings", f"{RUNS}[dora_embedding]"),
    Cell("DoRA", PEFT, "reads", "exact", "a head, BERT's pooler", f"{RUNS}[dora_pooler]"),
    Cell("DoRA", PEFT, "reads", "exact", '`bias="all"`', f"{RUNS}[bias_dora]"),
    Cell("DoRA", PEFT, "reads", "refused", "with `lora_bias` (PEFT refuses it too)", f"{WRONG}[lora_bias_dora]"),
    Cell("DoRA", PEFT, "writes", "exact", "linear maps", f"{RUN_BY}[llama-dora]"),
    Cell("DoRA", PEFT, "writes", "exact", "with a trained head", f"{RUN_BY}[bert-dora+head]"),
    Cell("DoRA", PEFT, "writes", "exact", "parts of different rank and alpha, as patterns", f"{RUN_BY}[gpt2-dora_patterns]"),
    Cell("LayerNorm", PEFT, "writes", "exact", "Selective of norms as LN_TUNING", f"{RUN_BY}[gpt2-norm]"),
    Cell("IA3", PEFT, "reads", "exact", "gated MLP: PEFT's input scale at `down` is ours at the output of `up`", f"{RUNS}[ia3]"),
    Cell("IA3", PEFT, "reads", "exact", "Conv1D", f"{RUNS}[ia3_conv1d]"),
    Cell("IA3", PEFT, "reads", "exact", "BERT, where PEFT's own targets also match `attention.output.dense`", f"{RUNS}[ia3_bert]"),
    Cell("IA3", PEFT, "reads", "exact", "any targets and `feedforward_modules`", f"{RUNS}[ia3_other]"),
    Cell("IA3", PEFT, "writes", "exact", "gated MLP", f"{RUN_BY}[llama-ia3]"),
    Cell("IA3", PEFT, "writes", "exact", "BERT", f"{RUN_BY}[bert-ia3]"),
    Cell("AdaLoRA", PEFT, "reads", "exact", "as LoRA, its singular values and scale folded into A", f"{RUNS}[adalora]"),
    Cell("AdaLoRA", PEFT, "reads", "exact", "with `rank_pattern`", "test_parity.py::test_adalora_with_ranks_of_its_own"),
    Cell("LayerNorm", PEFT, "reads", "exact", "LN_TUNING of RMS norms", f"{RUNS}[ln_tuning]"),
    Cell("LayerNorm", PEFT, "reads", "exact", "LN_TUNING, with a trained head", f"{RUNS}[ln_tuning_head]"),
    Cell("LayerNorm", PEFT, "reads", "exact", "LN_TUNING, targets as a regular expression", f"{RUNS}[ln_tuning_regex]"),
    Cell("Prompt", PEFT, "reads", "exact", "PROMPT_TUNING on decoders", f"{RUNS}[prompt]"),
    Cell("Prompt", PEFT, "reads", "exact", "PROMPT_TUNING on BERT", f"{RUNS}[prompt_bert]"),
    Cell("Prompt", PEFT, "reads", "exact", "P_TUNING's result (MLP)", f"{RUNS}[p_tuning]"),
    Cell("Prompt", PEFT, "reads", "exact", "P_TUNING's result (LSTM)", f"{RUNS}[p_tuning_lstm]"),
    Cell("Prompt", PEFT, "reads", "exact", "P_TUNING's result on BERT", f"{RUNS}[p_tuning_bert]"),
    Cell("Prompt", PEFT, "writes", "exact", "PROMPT_TUNING on decoders", f"{RUN_BY}[llama-prompt]"),
    Cell("Prompt", PEFT, "writes", "exact", "PROMPT_TUNING on BERT, with a trained head", f"{RUN_BY}[bert-prompt+head]"),
    Cell("Prefix", PEFT, "reads", "exact", "grouped key-value heads", f"{RUNS}[prefix]"),
    Cell("Prefix", PEFT, "reads", "exact", "one key-value head a query head", f"{RUNS}[prefix_plain]"),
    Cell("Prefix", PEFT, "reads", "exact", "made with `prefix_projection`", f"{RUNS}[prefix_mlp]"),
    Cell("Prefix", PEFT, "writes", "exact", "grouped key-value heads", f"{RUN_BY}[llama-prefix]"),
    Cell("Prefix", PEFT, "writes", "exact", "one key-value head a query head", f"{RUN_BY}[gpt2-prefix]"),
]

HUB = "AdapterHub"
TOLD, WRITTEN = (
    "test_adapterhub.py::test_what_adapterhub_wrote_runs_as_it_did_there",
    "test_adapterhub.py::test_what_we_write_is_what_adapterhub_wrote",
)
BACK, NEVER = "test_adapterhub.py::test_what_we_write_comes_back", "test_adapterhub.py::test_what_adapterhub_has_no_form_for_is_not_written"
ODD = "test_adapterhub.py::test_what_has_no_exact_form_is_refused_by_name"
FAMILIES = "BERT, RoBERTa, GPT-2, Llama, Mistral"
HUB_CELLS = [
    Cell("Bottleneck", HUB, "reads", "exact", f"`seq_bn` on {FAMILIES}", f"{TOLD}[bert-seq_bn]"),
    Cell("Bottleneck", HUB, "reads", "exact", f"`double_seq_bn` on {FAMILIES}", f"{TOLD}[llama-double_seq_bn]"),
    Cell("Bottleneck", HUB, "reads", "exact", f"`par_bn` on {FAMILIES}", f"{TOLD}[mistral-par_bn]"),
    Cell("Bottleneck", HUB, "reads", "exact", "`par_bn` beside attention too, on BERT", f"{TOLD}[bert-par_both]"),
    Cell("Bottleneck", HUB, "reads", "exact", "after attention alone; `gelu_new`", f"{TOLD}[bert-attention]"),
    Cell("Bottleneck", HUB, "reads", "exact", "`leave_out`, `scaling`, `gelu`", f"{TOLD}[llama-leave_out]"),
    Cell("Bottleneck", HUB, "reads", "exact", "another `reduction_factor` in each layer; `leakyrelu`", f"{TOLD}[gpt2-factors]"),
    Cell("Bottleneck", HUB, "reads", "exact", "with a trained head", f"{TOLD}[roberta-head]"),
    Cell("Bottleneck", HUB, "reads", "refused", "after the norm of a BERT layer (`original_ln_after=False`)", f"{ODD}[after_the_norm]"),
    Cell("Bottleneck", HUB, "reads", "refused", "`original_ln_before` after attention", f"{ODD}[attention_block]"),
    Cell("Bottleneck", HUB, "reads", "refused", "`par_bn` beside attention, on Llama and GPT-2", f"{ODD}[attention_parallel]"),
    Cell("Bottleneck", HUB, "reads", "refused", "norms of its own (`ln_before`)", f"{ODD}[ln_before]"),
    Cell("Bottleneck", HUB, "reads", "refused", "norms of its own (`ln_after`)", f"{ODD}[ln_after]"),
    Cell("Bottleneck", HUB, "reads", "refused", "`use_gating`", f"{ODD}[gating]"),
    Cell("Bottleneck", HUB, "reads", "refused", '`scaling="learned"`', f"{ODD}[learned]"),
    Cell("Bottleneck", HUB, "reads", "refused", '`scaling="channel"` (AdapterPlus)', f"{ODD}[channel]"),
    Cell("Bottleneck", HUB, "reads", "refused", "`dropout`, until it is set to 0", f"{ODD}[dropout]"),
    Cell("Bottleneck", HUB, "reads", "refused", "Compacter (`phm_layer`)", f"{ODD}[phm]"),
    Cell("Bottleneck", HUB, "reads", "refused", "invertible adapters", f"{ODD}[invertible]"),
    Cell("Bottleneck", HUB, "reads", "refused", "other activations", f"{ODD}[activation]"),
    Cell("Bottleneck", HUB, "writes", "exact", f"`seq_bn` on {FAMILIES}", f"{WRITTEN}[bert-seq_bn]"),
    Cell("Bottleneck", HUB, "writes", "exact", f"`double_seq_bn` on {FAMILIES}", f"{WRITTEN}[llama-double_seq_bn]"),
    Cell("Bottleneck", HUB, "writes", "exact", f"`par_bn` on {FAMILIES}", f"{WRITTEN}[mistral-par_bn]"),
    Cell("Bottleneck", HUB, "writes", "exact", "any size", f"{BACK}[bert-size]"),
    Cell("Bottleneck", HUB, "writes", "exact", "sizes that differ by layer", f"{BACK}[llama-sizes]"),
    Cell("Bottleneck", HUB, "writes", "exact", "some layers", f"{BACK}[roberta-one]"),
    Cell("Bottleneck", HUB, "writes", "refused", "parallel behind the norm, on Llama and GPT-2", f"{NEVER}[behind_the_norm]"),
    Cell("Bottleneck", HUB, "writes", "refused", "`mlp` and `block` at once", f"{NEVER}[mlp_and_block]"),
    Cell("LoRA", HUB, "reads", "exact", f"query and value on {FAMILIES}", f"{TOLD}[llama-lora]"),
    Cell("LoRA", HUB, "reads", "exact", "all its places (on Llama it exchanges the two of the MLP)", f"{TOLD}[llama-lora_all]"),
    Cell("LoRA", HUB, "reads", "exact", "GPT-2's fused projection", f"{TOLD}[gpt2-lora_all]"),
    Cell("LoRA", HUB, "reads", "exact", "`leave_out`", f"{TOLD}[gpt2-keys]"),
    Cell("LoRA", HUB, "reads", "exact", "with a trained head", f"{TOLD}[bert-head]"),
    Cell(
        "LoRA",
        HUB,
        "reads",
        "exact",
        "files of before 1.1.0, whose scale was 1",
        "test_adapterhub.py::test_what_older_versions_meant_is_read_as_the_library_reads_it",
    ),
    Cell("LoRA", HUB, "reads", "refused", "its DoRA, whose formula is another", f"{ODD}[dora]"),
    Cell("LoRA", HUB, "reads", "refused", "VeRA", f"{ODD}[vera]"),
    Cell("LoRA", HUB, "reads", "refused", "`use_gating`", f"{ODD}[lora_gating]"),
    Cell("LoRA", HUB, "reads", "refused", "multi-task LoRA", f"{ODD}[mtl_lora]"),
    Cell("LoRA", HUB, "writes", "exact", f"query and value on {FAMILIES}", f"{WRITTEN}[llama-lora]"),
    Cell("LoRA", HUB, "writes", "exact", "GPT-2's fused projection", f"{WRITTEN}[gpt2-lora_all]"),
    Cell("LoRA", HUB, "writes", "exact", "rsLoRA", f"{BACK}[llama-rslora]"),
    Cell("LoRA", HUB, "writes", "exact", "with a trained head", f"{WRITTEN}[bert-head]"),
    Cell("LoRA", HUB, "writes", "refused", "at the output of attention (`all-linear`)", f"{NEVER}[attention_out]"),
    Cell("LoRA", HUB, "writes", "refused", "ranks that differ by module", f"{NEVER}[two_parts]"),
    Cell("LoRA", HUB, "writes", "refused", "at a fused projection as a whole", f"{NEVER}[whole_qkv]"),
    Cell("DoRA", HUB, "writes", "refused", "its formula is another", f"{NEVER}[dora]"),
    Cell("IA3", HUB, "reads", "exact", f"{FAMILIES}: outputs are scaled, on Llama that of `down_proj`", f"{TOLD}[llama-ia3]"),
    Cell("IA3", HUB, "reads", "refused", "an `alpha` that is not 1", f"{ODD}[scale_alpha]"),
    Cell("IA3", HUB, "writes", "exact", f"what it has itself on {FAMILIES}", f"{WRITTEN}[gpt2-ia3]"),
    Cell("IA3", HUB, "writes", "exact", "the paper's places in a gated MLP", f"{BACK}[llama-ia3]"),
    Cell("IA3", HUB, "writes", "refused", "a scale of an input (the paper's places in a plain MLP)", f"{NEVER}[input_scale]"),
    Cell("Prefix", HUB, "reads", "exact", f"flat, on {FAMILIES}; positions are not shifted", f"{TOLD}[gpt2-prefix]"),
    Cell("Prefix", HUB, "reads", "exact", "made by an MLP; grouped key-value heads", f"{TOLD}[llama-prefix_mlp]"),
    Cell("Prefix", HUB, "reads", "exact", "with a sliding window, which never hides it", f"{TOLD}[mistral_window-prefix]"),
    Cell("Prefix", HUB, "reads", "refused", "`leave_out`", f"{ODD}[prefix_leave_out]"),
    Cell("Prefix", HUB, "reads", "refused", "`use_gating`", f"{ODD}[prefix_gating]"),
    Cell("Prefix", HUB, "writes", "exact", f"flat, on {FAMILIES}", f"{WRITTEN}[mistral-prefix]"),
    Cell("Prefix", HUB, "writes", "exact", "made by an MLP, written as what it makes", f"{BACK}[llama-prefix_mlp]"),
    Cell("Prefix", HUB, "writes", "refused", "one that shifts positions, on decoders", f"{NEVER}[shifted]"),
    Cell("Prompt", HUB, "reads", "exact", "BERT, RoBERTa: straight into the layers", f"{TOLD}[roberta-prompt]"),
    Cell("Prompt", HUB, "reads", "refused", "`prefix_after_bos`", f"{ODD}[prompt_after_bos]"),
    Cell(
        "Prompt", HUB, "reads", "refused", "decoders, on which AdapterHub has none", "test_adapterhub.py::test_prompts_are_on_encoders_only"
    ),
    Cell("Prompt", HUB, "writes", "exact", 'BERT, RoBERTa: `Prompt(into="layers")`', f"{WRITTEN}[bert-prompt]"),
    Cell("Prompt", HUB, "writes", "refused", "among the words' embeddings", f"{NEVER}[words]"),
    Cell("Biases", HUB, "writes", "refused", "AdapterHub has no such method", f"{NEVER}[bias]"),
]

CELLS = [*PEFT_CELLS, *HUB_CELLS]
INTROS = {
    HUB: """*In.* AdapterHub's library (`adapters`) writes pickles unless it is called with `use_safetensors=True` (which fails for a
prefix), and Graft opens none: where that library is installed, `python scripts/adapterhub.py convert FOLDER` writes
`adapter.safetensors` (and `model_head.safetensors`) beside them, which the library also reads. Then `graft.load(model, folder)` loads it
like any other. A head in the folder is read as a trained head, unless it is the base's own. What has no exact form is refused by name.

*Out.* `adapted.save(folder, format="adapterhub")`, and there `model.load_adapter(folder, use_safetensors=True)`. The adapter keeps the
name it came with, or gets the folder's.

*How it is tested.* AdapterHub needs an older transformers than Graft, so its library is not part of the tests. They read adapters that it
wrote and compare with the logits that it computed (`tests/fixtures/adapterhub`, made by `scripts/adapterhub.py fixtures`), and compare
what Graft writes with what it wrote: keys, shapes, values, config. On 24 November 2026, adapters 1.3.0 with transformers 4.57.6 and torch
2.13.0 loaded all 62 folders that Graft wrote for this page (`scripts/adapterhub.py check`), no key missing or left over, with logits
equal to 1e-7 of the largest (prefixes that an MLP made: its library keeps them in float32) and to 1e-15 (all others).

*Mind* that this library, with attention `sdpa` and no padding in a batch, gives a prefix on a decoder a wrong causal mask: on a tiny
Llama the same row alone and beside padding gave logits 0.56 apart, where `eager` gave the same. Graft computes what `eager` does.
""",
}
"""What is said before a peer's table."""
HEADING = """# What Graft exchanges with other tools

Each line is proved by the test that it names: *exact* means equal logits in float64 (and, where the test compares them, equal
gradients) on tiny random models, through files, against what the other tool's own library computed; *refused* means one clear error
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
    lines = [f"## {peer}", "", *([INTROS[peer]] if peer in INTROS else []), *table_head(["method", "Graft", "what", "verdict", "test"])]
    lines += [row([cell.method, cell.direction, cell.note, cell.verdict, f"`{cell.test}`"]) for cell in cells]
    return "\n".join([*lines, ""])


def table_head(names: Sequence[str]) -> list[str]:
    return [row(names), "|" + "---|" * len(names)]


def row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    PAGE.write_text(render(CELLS))
