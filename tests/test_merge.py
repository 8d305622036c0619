"""Merges that can be trusted: one rounding, the base back bit for bit whatever happened in between, one of several, ties kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers as T

import graft
from graft import DoRA, LoRA, Selective
from graft.errors import AdapterError
from graft.method import makes
from graft.model.fold import affine, stations
from settings import MERGEABLE, SETTINGS
from tiny import MODELS, inputs, tiny

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WHOLE = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def shake(adapted, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))
    return adapted


def made(name, setting, dtype=torch.float32, seed=3):
    methods = SETTINGS[setting] if isinstance(setting, str) else setting
    return shake(graft.adapt(tiny(name, dtype), methods), seed)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def bits(model):
    return {name: value.detach().clone().view(WHOLE[value.dtype]) for name, value in model.named_parameters() if "graft" not in name}


def same_bits(a, b):
    return list(a) == list(b) and all(torch.equal(value, b[name]) for name, value in a.items())


def cycle(name, setting, dtype, rounds):
    adapted = made(name, setting, dtype)
    base, trained = bits(adapted.model), [value.detach().clone() for value in adapted.parameters()]
    config = copy.deepcopy(adapted.model.config.to_dict())
    for _ in range(rounds):
        graft.merge(adapted)
        assert not same_bits(bits(adapted.model), base)
        graft.unmerge(adapted)
    assert same_bits(bits(adapted.model), base)
    assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), trained, strict=True))
    assert adapted.model.config.to_dict() == config


@pytest.mark.parametrize("setting", MERGEABLE)
def test_a_hundred_merges_leave_the_base_as_it_was(setting):
    cycle("gpt2", setting, torch.bfloat16, 100)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", MERGEABLE)
@pytest.mark.parametrize("name", ["llama_bias", "gemma2", "phi3", "bert"])
def test_a_hundred_merges_leave_every_base_as_it_was(name, setting, dtype):
    cycle(name, setting, dtype, 100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", MERGEABLE)
@pytest.mark.parametrize("name", ["llama_bias", "phi3", "bert"])
def test_a_few_merges_leave_every_base_as_it_was(name, setting, dtype):
    cycle(name, setting, dtype, 2)


# the weights themselves


def exact(adapted):
    """Every changed matrix and bias in float64, written out from the trained tensors: {path: (W' [out, in], b')}."""
    model, found = adapted.model, {}
    for path, here in stations(model, adapted.adapter()).items():
        form = affine(model, path, here)
        module = model.get_submodule(path)
        own = {name: value.detach().double() for name, value in module.named_parameters(recurse=False)}
        for station, tensors in here:
            if makes(station.method) is graft.forms.Replacement:
                own |= {name: value.to(dict(module.named_parameters())[name].dtype).double() for name, value in tensors.items()}
        if form is not None:
            field = {name: value.double() for name, value in form.tensors().items()}
            flipped = type(module).__name__ == "Conv1D" or here[0][0].site.role == "embedding"
            gain = getattr(module, "embed_scale", torch.tensor(1.0)).to(module.weight.dtype).double()
            W = own["weight"].T if flipped else own["weight"]
            if W.dim() == 2:
                W = W * gain * field.get("c", torch.ones(1)).double()[:, None]
                B = field["B"] * field["c"][:, None] if form.scales == "sum" else field.get("B")
                W = W + B @ field["A"] if "A" in field else W
                W = W * field.get("i", torch.ones(1)).double() / gain
                own["weight"] = W.T if flipped else W
            b = own.get("bias", torch.zeros(1).double()) * field.get("c", torch.ones(1)).double() + field.get("b", torch.zeros(1)).double()
            if "bias" in own or "b" in field:
                own["bias"] = b
        found[path] = own
    return found


def ulps(value, wanted):
    """How many units in the last place of value's dtype two finite tensors are apart: bit patterns in order, counted."""
    kind = WHOLE[value.dtype]
    lowest = torch.iinfo(kind).min

    def ordered(x):
        number = x.contiguous().view(kind).long()
        return torch.where(number < 0, lowest - number, number)

    return (ordered(value) - ordered(wanted.to(value.dtype))).abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize("setting", MERGEABLE)
@pytest.mark.parametrize("name", ["llama_bias", "gpt2", "gemma2", "phi3", "bert"])
def test_a_merged_weight_is_the_exact_one_rounded_once(name, setting, dtype):
    adapted = made(name, setting, dtype)
    wanted = exact(adapted)
    graft.merge(adapted)
    assert wanted
    for path, values in wanted.items():
        merged = dict(adapted.model.get_submodule(path).named_parameters(recurse=False))
        assert set(merged) == set(values)
        for key, value in values.items():
            assert merged[key].dtype == dtype
            assert ulps(merged[key].detach(), value) <= (1 if dtype != torch.float64 else 64), (path, key)


def test_a_scale_of_dora_is_exact_to_the_precision_of_its_base():
    # what `exact` above takes from the form is itself measured here: c against m / ‖W + sBA‖ in float64
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2e-3)):
        adapted = made("llama_bias", "dora", dtype)
        for path, here in stations(adapted.model, adapted.adapter()).items():
            form, ((station, tensors),) = affine(adapted.model, path, here), here
            A, B, m = (tensors[key].double() for key in ("A", "B", "magnitude"))
            c = m / (station.base.weight.double() + 5.0 / 3 * B @ A).norm(dim=1)
            assert ((form.c.double() - c).abs() / c.abs()).max() < bound


def test_a_weight_in_blocks_of_rows_is_the_weight_at_once(monkeypatch):
    whole = graft.merge(made("gpt2", "ia3+lora")).state_dict()
    monkeypatch.setattr("graft.model.fold.BLOCK", 70)
    blocks = graft.merge(made("gpt2", "ia3+lora")).state_dict()
    assert all(torch.equal(value, blocks[key]) for key, value in whole.items())


def test_a_merge_that_the_dtype_cannot_hold_is_refused_and_nothing_is_touched():
    adapted = made("llama", "lora", torch.float16)
    with torch.no_grad():
        for value in adapted.parameters():
            value.mul_(1e4)
    base = bits(adapted.model)
    with pytest.raises(AdapterError, match=r"too large for torch\.float16"):
        graft.merge(adapted)
    assert same_bits(bits(adapted.model), base)


# whatever happened in between


def nothing(model, tmp_path):
    pass


def generated(model, tmp_path):
    model.generate(inputs("llama_bias")["input_ids"], max_new_tokens=3, do_sample=False)


def stored(model, tmp_path):
    model.save_pretrained(tmp_path / "merged")


def halved(model, tmp_path):
    model.to(torch.bfloat16)


def there_and_back(model, tmp_path):
    model.half()
    model.to(torch.float64).to(torch.float32)


def trained(model, tmp_path):
    # an optimizer that writes into the merged weights in place
    names = {path for path, module in model.named_modules() if path.endswith(("q_proj", "down_proj"))}
    chosen = [model.get_submodule(path).weight.requires_grad_() for path in names]
    model(**inputs("llama_bias")).logits.sum().backward()
    torch.optim.SGD(chosen, lr=0.1).step()


def loaded(model, tmp_path):
    # a checkpoint's tensors assigned: the modules hold other objects than before
    model.get_submodule("model.layers.0").load_state_dict(copy.deepcopy(model.get_submodule("model.layers.0").state_dict()), assign=True)


def copied(model, tmp_path):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for value in twin.parameters():
            value.zero_()


def untied(model, tmp_path):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)


@pytest.mark.parametrize("between", [nothing, generated, stored, halved, there_and_back, trained, loaded, copied, untied])
@pytest.mark.parametrize("setting", ["lora", "dora", "last", "bias"])
def test_unmerging_gives_back_the_base_whatever_happened_in_between(setting, between, tmp_path):
    adapted = made("llama_bias", setting)
    batch, base, expected = inputs("llama_bias"), bits(adapted.model), logits(adapted.model, inputs("llama_bias"))
    buffers = {name: value.clone() for name, value in adapted.model.named_buffers()}
    if between is trained and setting in ("bias", "last"):
        pytest.skip("the projections that are trained in between are not merged by this one")
    between(graft.merge(adapted), tmp_path)
    graft.unmerge(adapted)
    assert same_bits(bits(adapted.model), base)
    assert all(torch.equal(value, buffers[name]) for name, value in adapted.model.named_buffers() if name in buffers)
    assert torch.equal(logits(adapted.model, batch), expected)


def test_a_base_that_was_overwritten_where_the_merge_kept_nothing_is_not_given_back():
    adapted = made("llama_bias", "lora")
    merged = graft.merge(adapted)
    with torch.no_grad():
        merged.model.norm.weight.mul_(1.5)
    state = bits(merged)
    with pytest.raises(AdapterError, match=r"1 parameters that the merge left in place were overwritten since \(first model.norm.weight\)"):
        graft.unmerge(adapted)
    assert same_bits(bits(merged), state)


def test_what_a_merge_keeps_is_counted_before_and_after():
    adapted = made("llama_bias", "lora_rows", torch.bfloat16)
    linear = [module for path, module in adapted.model.named_modules() if path.endswith(("q_proj", "v_proj"))]
    wanted = sum(module.weight.numel() * 2 for module in linear)
    assert graft.merge_cost(adapted) == wanted
    graft.merge(adapted)
    assert graft.merge_cost(adapted) == wanted


@pytest.mark.parametrize("setting", MERGEABLE)
@pytest.mark.parametrize("name", ["gpt2", "llama_bias", "phi3"])
def test_the_cost_of_a_merge_is_what_it_keeps(name, setting):
    adapted = made(name, setting)
    before = graft.merge_cost(adapted)
    graft.merge(adapted)
    assert graft.merge_cost(adapted) == before > 0


@pytest.mark.parametrize("done", ["route", "save", "detach"])
def test_what_has_no_meaning_while_merged_is_refused(done, tmp_path):
    adapted = made("llama", "lora")
    adapted.add("other", made("llama", "ia3").adapter())
    graft.merge(adapted)
    with pytest.raises(AdapterError, match="while an adapter is merged into the base's weights"):
        {"route": lambda: adapted.route(["other"]), "save": lambda: adapted.save(tmp_path / "a"), "detach": adapted.detach}[done]()
    graft.unmerge(adapted)


def test_merges_on_merges_come_off_in_their_order():
    first = made("llama", "lora")
    base, ours = bits(first.model), logits(first.model, inputs("llama"))
    second = shake(graft.adapt(graft.merge(first), LoRA(r=2)), 5)
    with pytest.raises(AdapterError, match="another adapter is attached"):
        graft.unmerge(first)
    both = logits(second.model, inputs("llama"))
    graft.merge(second)
    torch.testing.assert_close(logits(second.model, inputs("llama")), both, rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match="unmerge that one first"):
        graft.unmerge(first)
    graft.unmerge(second).detach()
    graft.unmerge(first)
    assert same_bits(bits(first.model), base)
    assert torch.equal(logits(first.model, inputs("llama")), ours)
    with pytest.raises(AdapterError, match="no adapter is merged"):
        graft.unmerge(first)


# one of several


@pytest.mark.parametrize("chosen", ["live", "dora", "head", "bias"])
@pytest.mark.parametrize("name", ["gpt2", "llama_bias"])
def test_one_of_several_merges_and_the_others_are_what_they_were(name, chosen):
    adapted = made(name, "lora", torch.float64)
    others = ("dora", "head", "bias", "prefix", "parallel", "ia3")
    for number, setting in enumerate(others):
        adapted.add(setting, made(name, setting, torch.float64, seed=number).adapter())
    batch = inputs(name, rows=len(others) + 2)
    rows = ["live", *others, None]
    adapted.route(rows)
    before = logits(adapted.model, batch)
    adapted.route([chosen])
    wanted = logits(adapted.model, batch)
    adapted.route(None)
    live = logits(adapted.model, batch)
    merged = graft.merge(adapted, name=chosen)
    assert not any(".graft" in key for key in merged.state_dict())
    torch.testing.assert_close(logits(merged, batch), wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(AdapterError, match="unmerge it first"):
        graft.merge(adapted)
    graft.unmerge(adapted)
    assert torch.equal(logits(adapted.model, batch), live)
    adapted.route(rows)
    assert torch.equal(logits(adapted.model, batch), before)


def test_one_of_several_that_cannot_merge_or_is_not_there_is_refused():
    adapted = made("llama", "lora")
    adapted.add("prefix", made("llama", "prefix").adapter())
    for name, said in (("prefix", "prefix cannot be merged: virtual tokens"), ("other", "there are live, prefix")):
        with pytest.raises(AdapterError, match=said):
            graft.merge(adapted, name=name)


# tied weights, now and after a reload

TIED = {
    "lora_embedding": [LoRA(r=2, targets=("embedding",))],
    "lora_head": [LoRA(r=2, targets=("head",))],
    "dora_head": [DoRA(r=2, targets=("head",))],
    "selective_head": [Selective("head")],
    "lora_both": [LoRA(r=2, targets=("embedding", "head"))],
    "full": [Selective("full")],
    "full+lora_head": [Selective("full"), LoRA(r=2, targets=("head",))],
    "lora": [LoRA(r=2)],
}


@pytest.mark.parametrize("setting", TIED)
@pytest.mark.parametrize("name", ["gpt2", "llama_bias", "gemma2", "gemma3"])
def test_a_tied_model_is_right_when_merged_and_after_a_reload(name, setting, tmp_path):
    adapted = made(name, TIED[setting])
    batch, expected = inputs(name), logits(adapted.model, inputs(name))
    base = bits(adapted.model)
    merged = graft.merge(adapted)
    stays = setting in ("full", "lora")
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == stays
    assert merged.config.tie_word_embeddings is stays
    torch.testing.assert_close(logits(merged, batch), expected, rtol=2e-4, atol=2e-4)
    merged.save_pretrained(tmp_path)
    again = T.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=merged.config._attn_implementation)
    assert torch.equal(logits(again, batch), logits(merged, batch))
    graft.unmerge(adapted)
    assert same_bits(bits(adapted.model), base)
    assert adapted.model.get_output_embeddings().weight is adapted.model.get_input_embeddings().weight
    assert torch.equal(logits(adapted.model, batch), expected)


@pytest.mark.parametrize("setting", MERGEABLE)
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_merge_is_the_merged_model_or_says_what_it_would_lose(name, setting, tmp_path):
    adapted = made(name, setting)
    merged = graft.merge(adapted)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path, attn_implementation=merged.config._attn_implementation)
    equal = torch.equal(logits(again, inputs(name)), logits(merged, inputs(name)))
    assert equal == (not graft.model.merge.homeless(adapted))


def test_a_bias_of_some_projections_is_saved_with_zeros_for_the_rest(tmp_path):
    from graft.site import LINEAR

    adapted = graft.adapt(tiny("llama"), SETTINGS["bias"])
    parts = adapted.adapter().parts
    only = {site: {"b": torch.ones(site.outputs)} for site in parts[0][1] if site.role == "query"}
    adapted.detach()
    assert "query" in LINEAR
    host = made("llama", "lora")
    from graft.adapter import Adapter

    host.add("query", Adapter(((parts[0][0], only),)))
    merged = graft.merge(host, name="query")
    assert merged.config.attention_bias is True
    merged.save_pretrained(tmp_path)
    again = T.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, inputs("llama")), logits(merged, inputs("llama")))
    x = torch.randn(2, 32)
    q = merged.model.layers[0].self_attn.q_proj
    assert torch.equal(q(x), F.linear(x, q.weight, torch.ones(32)))
