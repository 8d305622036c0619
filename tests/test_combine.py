"""Combining: the sum of adapters is the base whose weights were summed by hand; what is cut to a rank says what it lost."""

import itertools

import pytest
import torch

import graft
from graft import IA3, BiasOnly, DoRA, LoRA, Selective
from graft.errors import AdapterError
from graft.forms import Affine
from graft.method import makes
from settings import MERGEABLE, SETTINGS
from tiny import inputs, tiny

EXACT = ("gpt2", "bert")
LOW = {
    "lora": [LoRA(r=3, alpha=5.0)],
    "rslora": [LoRA(r=4, rslora=True)],
    "elsewhere": [LoRA(r=2, targets=("down", "attention_out"))],
    "rows": [LoRA(r=2, targets=("query", "value"))],
    "more_rows": [LoRA(r=1, targets=("value",))],
    "lora+bias": [LoRA(r=3), BiasOnly(add=True)],
    "embedding": [LoRA(r=2, targets=("embedding",))],
    "head": [LoRA(r=2, targets=("head",))],
}
PAIRS = [
    *itertools.combinations(LOW, 2),
    ("lora", "dora"),
    ("ia3", "lora+bias"),
    ("dora_rows", "ia3+lora"),
    ("norm", "bias"),
    ("head", "last"),
    ("full", "embedding"),
    ("full", "selective_head"),
    ("selective_head", "lora"),
    ("norm", "lora"),
    ("full", "head"),
]
METHODS = SETTINGS | LOW | {"selective_head": [Selective("head")]}


def shake(adapted, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))
    return adapted


def trained(name, setting, seed, dtype=torch.float64):
    adapted = shake(graft.adapt(tiny(name, dtype), METHODS[setting] if isinstance(setting, str) else setting), seed)
    return adapted.adapter()


def logits(model, name):
    with torch.no_grad():
        return model(**inputs(name)).logits


def state(model):
    """Every parameter by the name of each module that has it, so that a tied one can differ when it is untied."""
    return {name: value.detach().clone() for name, value in model.named_parameters(remove_duplicate=False)}


def merged_state(name, adapter):
    model = tiny(name, torch.float64)
    host = graft.adapt(model, LoRA(r=1))
    host.add("it", adapter)
    graft.merge(host, name="it")
    return state(model)


def by_hand(name, adapters, weights):
    """The base with W + Σ w (W' - W), summed here, and biases where some adapter adds one."""
    model = tiny(name, torch.float64)
    base = state(model)
    total = {key: value.clone() for key, value in base.items()}
    for adapter, weight in zip(adapters, weights, strict=True):
        for key, value in merged_state(name, adapter).items():
            start = base.get(key, torch.zeros_like(value))
            total[key] = total.get(key, start) + weight * (value - start)
    with torch.no_grad():
        for key, value in total.items():
            path, _, last = key.rpartition(".")
            model.get_submodule(path)._parameters[last] = torch.nn.Parameter(value)
    return model


def put_on(name, adapter):
    model = tiny(name, torch.float64)
    host = graft.adapt(model, LoRA(r=1))
    host.add("it", adapter)
    host.route(["it"])
    return host


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama_bias"])
def test_a_combination_is_the_base_with_its_weights_summed_by_hand(name, pair):
    if name == "bert" and "head" in pair:
        pytest.skip("a LoRA at a classifier of three outputs is tested on the others")
    adapters = [trained(name, setting, seed) for seed, setting in enumerate(pair)]
    result = graft.combine(tiny(name, torch.float64), adapters, [0.7, -0.4])
    assert result.error == 0
    assert result.errors == {}
    bound = 1e-11 if name in EXACT else 2e-6
    wanted = logits(by_hand(name, adapters, [0.7, -0.4]), name)
    torch.testing.assert_close(logits(put_on(name, result.adapter).model, name), wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("setting", MERGEABLE)
@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_an_adapter_of_weight_one_alone_is_itself(name, setting):
    one = trained(name, setting, 1)
    result = graft.combine(tiny(name, torch.float64), [one], [1.0])
    ours, theirs = (logits(put_on(name, adapter).model, name) for adapter in (result.adapter, one))
    torch.testing.assert_close(ours, theirs, rtol=1e-9 if name == "gpt2" else 2e-6, atol=1e-9 if name == "gpt2" else 2e-6)


@pytest.mark.parametrize("setting", ["lora", "lora+bias", "rows"])
def test_what_is_low_rank_stays_low_rank(setting):
    two = [trained("gpt2", setting, seed) for seed in (1, 2)]
    made = graft.combine(tiny("gpt2", torch.float64), two, [0.5, 0.5]).adapter
    assert all(makes(method) is Affine for method, _ in made.parts)
    assert [method.r for method, _ in made.parts if method.kind == "lora"] in ([6], [4, 4])
    assert "selective" not in {method.kind for method, _ in made.parts}


def test_sites_of_unequal_ranks_become_several_parts_named_as_short_as_can_be():
    parts = [trained("llama", LoRA(r=2), 1), trained("llama", LoRA(r=3, targets=("down",)), 2)]
    made = graft.combine(tiny("llama", torch.float64), parts, [1, 1]).adapter
    assert sorted((method.r, method.targets) for method, _ in made.parts) == [
        (2, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")),
        (5, ("down_proj",)),
    ]


@pytest.mark.parametrize("pair", [("lora", "rslora"), ("dora", "lora"), ("ia3", "lora+bias"), ("selective_head", "rows"), ("full", "norm")])
@pytest.mark.parametrize("name", ["gpt2", "llama_bias"])
def test_a_cut_to_a_rank_says_what_it_lost_and_at_full_rank_loses_nothing(name, pair):
    adapters = [trained(name, setting, seed) for seed, setting in enumerate(pair)]
    model = tiny(name, torch.float64)
    exact = graft.combine(model, adapters, [0.5, 0.5])
    full = graft.combine(model, adapters, [0.5, 0.5], rank=64)
    assert full.error < 1e-12
    torch.testing.assert_close(
        logits(put_on(name, full.adapter).model, name), logits(put_on(name, exact.adapter).model, name), rtol=2e-6, atol=2e-6
    )
    errors = [graft.combine(model, adapters, [0.5, 0.5], rank=rank).error for rank in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2] > 0
    cut = graft.combine(model, adapters, [0.5, 0.5], rank=2)
    assert max(method.r for method, _ in cut.adapter.parts if method.kind == "lora") <= 2
    base, wanted, made = state(model), state(by_hand(name, adapters, [0.5, 0.5])), merged_state(name, cut.adapter)
    off, all_of = 0.0, 0.0
    for key, value in wanted.items():
        start = base.get(key)
        if start is not None and value.dim() == 2 and "wpe" not in key:
            off += (made[key] - value).square().sum().item()
            all_of += (value - start).square().sum().item()
    assert cut.error == pytest.approx((off / all_of) ** 0.5, rel=1e-6)
    for path, error in cut.errors.items():
        key = f"{path}.weight"
        assert error == pytest.approx(((made[key] - wanted[key]).norm() / (wanted[key] - base[key]).norm()).item(), rel=1e-6)


def test_a_combination_is_saved_and_loaded_and_folders_can_be_combined(tmp_path):
    for number, setting in enumerate(("lora", "dora")):
        adapted = shake(graft.adapt(tiny("llama"), METHODS[setting]), number)
        adapted.save(tmp_path / setting)
    made = graft.combine(tiny("llama"), [tmp_path / "lora", str(tmp_path / "dora")], [0.5, 0.5])
    host = graft.adapt(tiny("llama"), LoRA(r=1))
    host.add("it", made.adapter)
    host.route(["it"])
    wanted = logits(host.model, "llama")
    from graft import formats
    from graft.model.ground import ground

    formats.save(made.adapter, tmp_path / "sum", ground(host.model))
    torch.testing.assert_close(logits(graft.load(tiny("llama"), tmp_path / "sum").model, "llama"), wanted, rtol=1e-5, atol=1e-5)
    other = tiny("llama")
    other.lm_head.weight.data.mul_(1.5)
    with pytest.raises(AdapterError, match="made for another base"):
        graft.combine(other, [tmp_path / "lora"], [1.0])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("houlsby", "no weighted sum: bottleneck cannot be merged: a branch with an activation"),
        ("prefix", "no weighted sum: prefix cannot be merged: virtual tokens are positions"),
        ("prompt+lora", "no weighted sum: prompt cannot be merged"),
    ],
)
def test_what_has_no_weighted_sum_is_refused_with_the_reason(setting, said):
    with pytest.raises(AdapterError, match=said):
        graft.combine(tiny("llama"), [trained("llama", setting, 1, torch.float32)], [1.0])


def test_a_sum_that_makes_no_sense_is_refused():
    one = trained("llama", IA3(), 1, torch.float32)
    for adapters, weights, rank in (([one], [1.0, 2.0], None), ([], [], None), ([one], [float("nan")], None), ([one], [1.0], 0)):
        with pytest.raises(AdapterError, match=r"give each adapter one finite weight|rank = 0"):
            graft.combine(tiny("llama"), adapters, weights, rank=rank)


def test_dora_at_a_module_and_lora_at_another_keep_the_second_low_rank():
    two = [trained("llama", DoRA(r=2, targets=("query",)), 1), trained("llama", LoRA(r=2, targets=("down",)), 2)]
    made = graft.combine(tiny("llama", torch.float64), two, [1.0, 1.0]).adapter
    assert {method.kind: {site.role for site in sites} for method, sites in made.parts} == {"lora": {"down"}, "selective": {"query"}}
