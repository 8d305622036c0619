"""The documents cannot rot: their Python runs, their commands parse, their rows are read, their numbers and settings are the code's."""

import copy
import dataclasses
import json
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
import transformers
import typer

import graft
from graft import data
from graft.cli import app
from graft.compare.grids import DEFAULT_RATES
from graft.errors import DataError
from graft.method import makes
from graft.methods import KINDS, METHODS
from graft.plan import counts

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))}
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FORMS = {"Affine": "affine", "Replacement": "replacement", "VirtualTokens": "virtual tokens"}
SMOLLM2 = transformers.LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def text(page: str) -> str:
    return PAGES[page].read_text()


def blocks(page: str, kind: str) -> list[str]:
    return [body for found, body in FENCE.findall(text(page)) if found == kind]


def sections(page: str, level: str = "## ") -> dict[str, str]:
    parts = re.split(rf"^{level}", text(page), flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: part for part in parts}


def commands(word: str) -> list[str]:
    """Every line in a shell block, and every inline code, of all pages that begins with the word."""
    found = []
    for page in PAGES:
        found += [line for body in blocks(page, "sh") for line in body.splitlines()]
        found += re.findall(r"`([^`\n]+)`", FENCE.sub("", text(page)))
    return sorted({line.strip() for line in found if line.startswith(f"{word} ")})


@pytest.fixture
def stand_in(monkeypatch, tmp_path, tiny_llama, tiny_tokenizer):
    """A folder with training rows, where any model's name means the tiny one: (model, tokenizer)."""
    model = copy.deepcopy(tiny_llama)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tiny_tokenizer)
    rows = [{"text": f"Where is card {number}?", "label": ("lost", "arrival")[number % 2]} for number in range(8)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, tiny_tokenizer


def run(source: str, names: dict) -> None:
    """Execute a block as a reader would, but for few steps; what other libraries warn of is not ours to judge."""
    short = re.sub(r"range\(100\)|max_steps=100", lambda found: found[0].replace("100", "2"), source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(short, "<document>", "exec"), names)


def test_the_readme_runs_from_top_to_bottom(stand_in):
    names: dict = {}
    source = blocks("README.md", "python")
    assert len(source) >= 5
    for block in source:
        run(block, names)
    assert names["result"].steps == 2
    assert names["answer"].shape[0] == 1
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        merged = names["merged"].cpu()(ids).logits
        again = transformers.LlamaForCausalLM.from_pretrained(Path.cwd() / "merged")
    assert torch.equal(again(ids).logits, merged)


@pytest.mark.parametrize("number", range(len(blocks("methods.md", "python"))))
def test_every_example_of_a_method_runs(stand_in, number):
    model, tokenizer = stand_in
    names = {"graft": graft, "model": model, "tokenizer": tokenizer}
    run(blocks("methods.md", "python")[number], names)
    assert names["adapted"].parameters()


def test_the_example_of_reading_rows_runs(stand_in):
    (block,) = blocks("data.md", "python")
    names: dict = {}
    run(block, names)
    assert (len(names["rest"]), len(names["held_out"])) == (6, 2)


def test_the_example_of_routing_runs(stand_in):
    model, _ = stand_in
    for seed, language in enumerate(("german", "french")):
        adapted = graft.adapt(model, graft.IA3() if seed else graft.LoRA(), seed=seed)
        adapted.save(f"adapters/{language}")
        adapted.detach()
    (block,) = blocks("architecture.md", "python")
    run(block, {"graft": graft, "model": model})


def test_the_examples_of_merging_run(monkeypatch, tmp_path, tiny_llama, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    model = copy.deepcopy(tiny_llama)
    model.save_pretrained("base")
    tiny_tokenizer.save_pretrained("base")
    for seed, language in enumerate(("german", "french")):
        adapted = graft.adapt(model, graft.DoRA(r=2) if seed else graft.LoRA(r=2), seed=seed)
        adapted.save(f"adapters/{language}")
        adapted.detach()
    names = {"graft": graft, "model": model}
    for block in blocks("merging.md", "python"):
        run(block, names)
        if isinstance(names.get("adapted"), graft.Adapted):
            names.pop("adapted").detach()
    assert names["combined"].error == 0
    assert names["report"].gap.rows == 1


@pytest.mark.parametrize("table", [0, 1])
def test_the_tables_of_merging_have_every_method_that_merges(table):
    found = re.findall(r"(?:^\|.*\n)+", text("merging.md"), re.MULTILINE)[table].splitlines()[2:-1]
    merging = [one.name for one in counts(SMOLLM2, METHODS) if one.merges]
    assert [line.split("|")[1].strip(" `") for line in found] == merging


@pytest.mark.parametrize("command", commands("graft"))
def test_every_command_and_option_exists(command):
    group = typer.main.get_command(app)
    name, *words = shlex.split(command)[1:]
    if name.startswith("-"):
        assert name in {option for option in group.get_help_option_names(group.context_class(group))} | {"--version"}
        return
    found = group.commands[name]
    if words:
        found.make_context(name, words)


@pytest.mark.parametrize("option", sorted({word for page in PAGES for word in re.findall(r"`(--[a-z0-9][a-z0-9-]*)", text(page))}))
def test_every_option_named_in_a_sentence_exists(option):
    known = {name for command in typer.main.get_command(app).commands.values() for parameter in command.params for name in parameter.opts}
    assert option in known


@pytest.mark.parametrize("command", commands("make"))
def test_every_make_target_exists(command):
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = PAGES[page] if not file else PAGES[page].parent / file
        assert found.exists(), target
        titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_readme_table_is_what_is_counted():
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text("README.md").splitlines() if line.startswith("|")]
    shown = {row[1].strip("`"): row[2:] for row in rows if row[1].strip("`") in METHODS}
    for one in counts(SMOLLM2, METHODS):
        form, trained, merges, positions = shown.pop(one.name)
        assert form == FORMS[makes(METHODS[one.name]).__name__]
        assert (trained, merges, positions) == (f"{one.trained:,}", "yes" if one.merges else "no", str(one.positions))
    assert not shown


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_stands_in_the_methods_page_with_its_default(kind):
    section = sections("methods.md")[KINDS[kind].__name__]
    fields = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section, re.MULTILINE)
    assert fields == [(field.name, repr(field.default)) for field in dataclasses.fields(KINDS[kind])]


@pytest.mark.parametrize("name", DEFAULT_RATES)
def test_every_default_learning_rate_stands_in_the_methods_page(name):
    section = sections("methods.md")[type(METHODS[name]).__name__]
    rate = f"`{DEFAULT_RATES[name]:g}`"
    if isinstance(METHODS[name], graft.Selective):
        assert f"`{name}` {rate}" in section
    else:
        assert re.findall(r"[Dd]efault\s+learning\s+rate\s+(`.*?`)", section) == [rate]


@pytest.mark.parametrize("body", blocks("data.md", "jsonl"))
def test_the_rows_on_the_data_page_are_rows(tmp_path, body):
    (tmp_path / "rows.jsonl").write_text(body)
    assert len(data.read(tmp_path / "rows.jsonl")) == len(body.splitlines())


def test_the_bad_rows_on_the_data_page_give_the_error_beside_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (rows,), (error,) = blocks("data.md", "jsonl bad"), blocks("data.md", "text error")
    Path("train.jsonl").write_text(rows)
    with pytest.raises(DataError) as raised:
        data.read("train.jsonl")
    assert str(raised.value) == error.rstrip("\n")


def test_every_module_in_the_layout_exists():
    layout = sections("architecture.md")["Layout"]
    modules = {path.relative_to(ROOT / "src" / "graft").as_posix() for path in (ROOT / "src" / "graft").rglob("*.py")}
    for name in re.findall(r"\b[a-z_]+\.py\b", layout):
        assert any(module == name or f"scripts/{name}" in layout for module in modules), name
    for folder in re.findall(r"^  ([a-z/0-9]+/)", layout, re.MULTILINE):
        assert any(module.startswith(folder) for module in modules), folder
