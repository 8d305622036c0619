"""Counts from a config alone are those of the adapted model, for every method on twenty architectures at their real sizes.

The models are built without memory: their adapted tensors have shapes and no values. That a loaded model with values has the same is the
law `shapes_are_what_init_makes` on tiny ones.
"""

import re
from pathlib import Path

import pytest
import torch
import transformers

import graft
from graft import IA3, Bottleneck, DoRA, LoRA, Prefix, Prompt
from graft.errors import GraftError, ServeError
from graft.forms import Replacement
from graft.method import makes
from graft.methods import METHODS
from graft.model import adapted as attaching
from graft.model import families
from graft.model.residents import Residents
from graft.model.skeleton import skeleton
from graft.model.wiring import Wiring
from graft.plan import USUAL, counts, flags, served
from graft.serve.shelf import check_servable, lean
from graft.serve.virtual import VirtualRows

PAGE = Path(__file__).parent.parent / "docs" / "planning.md"
ARCHITECTURES = (
    "Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Gemma", "Gemma2", "Gemma3Text", "Phi3", "Granite", "Olmo2", "GPT2", "GPTNeoX", "OPT",
    "Bert", "Roberta", "Olmo", "StableLm", "Cohere2", "Helium", "Arcee", "Ernie4_5",
)  # fmt: skip
TINY = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=50)
NONE = {("Olmo", "norms"), ("StableLm", "prefix"), ("StableLm", "prompt")}
"""Norms without weights; attention that does not go through transformers' registry."""
PAPERS = {
    "LoRA, rank 16": LoRA(r=16),
    "DoRA, rank 16": DoRA(r=16),
    "bottleneck, 64 wide, two a layer": Bottleneck(),
    "prefix, 20 positions": Prefix(n=20),
    "prompt, 20 positions": Prompt(n=20),
    "IA3": IA3(),
}


def llama(heads: int = 32, mlp: int = 11008) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=heads, intermediate_size=mlp, vocab_size=32000
    )


@pytest.fixture
def valueless(monkeypatch):
    """Adapting a model without memory: what reads its values is left out."""
    monkeypatch.setattr(attaching, "fingerprint", lambda *_: "")
    monkeypatch.setattr(attaching.belonging, "portrait", lambda *_: {})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counts_are_those_of_the_adapted_model(architecture, valueless):
    config = getattr(transformers, f"{architecture}Config")()
    found = {one.name: one for one in counts(config, METHODS)}
    model = skeleton(config)
    for name, method in METHODS.items():
        if found[name].refused:
            with pytest.raises(GraftError), torch.device("meta"):
                graft.adapt(model, method)
            assert (architecture, name) in NONE
            continue
        with torch.device("meta"):
            adapted = graft.adapt(model, method)
        assert found[name].trained == sum(value.numel() for value in adapted.parameters()), name
        assert found[name].stored == found[name].trained
        assert found[name].merges == (not adapted.mergeable), name
        assert found[name].positions == adapted.context_positions, name
        adapted.detach()
    assert found["full"].trained == found["full"].base


def test_the_literature_table_for_a_7b_model():
    found = {one.name: one.trained for one in counts(llama(), PAPERS)}
    assert list(found.values()) == [39_976_960, 41_336_832, 33_820_672, 5_242_880, 81_920, 614_400]


def rows(title: str) -> list[list[str]]:
    """The cells of the first table under a heading of the page."""
    part = PAGE.read_text().split(f"## {title}\n")[1]
    lines = re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_the_table_and_what_grouped_queries_change():
    columns = [{one.name: f"{one.trained:,}" for one in counts(config, PAPERS)} for config in (llama(), llama(8), llama(8, 14336))]
    assert rows("The table of the literature") == [[name, *(column[name] for column in columns)] for name in PAPERS]


def test_what_is_quoted_wrongly_is_wrong_in_the_way_that_the_page_says():
    d, layers, m = 4096, 32, 64
    assert layers * 2 * (2 * d * m + m + m) == 33_562_624
    assert layers * 2 * (2 * d * m + m + d) == graft.count(llama(), Bottleneck())
    magnitudes = graft.count(llama(), DoRA(r=16)) - graft.count(llama(), LoRA(r=16))
    assert (layers * d, magnitudes) == (131_072, 1_359_872)
    assert {"33,562,624", "33,820,672", "131,072", "1,359,872"} <= set(re.findall(r"[\d,]{5,}\d", PAGE.read_text()))


def test_what_serving_costs_follows_from_the_forms():
    found = {one.name: one.served for one in counts(llama(), USUAL)}
    lora, bottleneck, ia3, prefix = (found[name] for name in ("lora r=16", "bottleneck", "ia3", "prefix n=20"))
    assert (lora.latency, lora.products, lora.flops) == ("beside", 2 * 7 * 32, 2 * 39_976_960)
    assert (bottleneck.latency, bottleneck.products, bottleneck.merges) == ("in line", 2 * 2 * 32, False)
    assert (ia3.latency, ia3.products, ia3.bytes) == ("elementwise", 0, 4 * 614_400)
    assert (prefix.latency, prefix.positions, prefix.bytes) == ("context", 20, 2 * 5_242_880)
    assert found["prompt n=20"].bytes == 2 * 20 * 4096
    assert found["full"].latency == "own"
    flat, through = (one.served for one in counts(llama(), {"flat": Prefix(n=20), "through": Prefix(n=20, mlp=512)}))
    assert flat == through  # an MLP is dropped when training ends
    assert all(one.shares for one in found.values())
    alone = [one.name for one in counts(transformers.BertConfig(), USUAL) if one.served and not one.served.shares]
    assert alone == ["prompt n=20"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_adapter_holds_in_a_slot_is_what_serving_puts_there(dtype):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).to(dtype)
    empty = skeleton(model.config)
    for name, method in METHODS.items():
        found = served(empty, method, families.sites(empty), bits=8 * dtype.itemsize)
        adapted = graft.adapt(model, method)
        adapter = adapted.adapter()
        adapted.detach()
        if makes(method) is Replacement:
            assert not found.serves
            with pytest.raises(ServeError, match="trains whole modules"):
                check_servable(adapter, name, model)
            continue
        check_servable(adapter, name, model)
        residents = Residents(Wiring(model))
        residents.check(adapter)
        prepared = lean(residents.prepare(adapter), dtype)
        tensors = [value for forms in prepared.plan.values() for _, form in forms for value in form.tensors().values()]
        held = sum(value.numel() * value.element_size() for value in tensors)
        if prepared.virtual is not None:
            rows = VirtualRows(2, torch.device("cpu"), dtype)
            rows.load(1, prepared.virtual)
            kind, own = rows.held[1]
            held += kind.value.numel() // kind.value.shape[kind.dim] * len(own) * kind.value.element_size()
        assert found.serves
        assert found.bytes == held, name


def test_a_name_of_the_plan_is_what_the_command_line_takes():
    assert flags("lora r=16") == "--method lora --set r=16"
    assert flags("ia3") == "--method ia3"
