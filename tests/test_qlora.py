"""QLoRA is no method: every method on a 4-bit base is the same method on the dense base of the dequantised weights."""

import copy

import pytest
import torch
import torch.nn as nn

import graft
from graft.kernels import nf4
from graft.model.base import fingerprint, storage
from graft.model.merge import densified
from settings import MERGEABLE, SETTINGS
from tiny import inputs, tiny

bnb = pytest.importorskip("bitsandbytes")
FAMILIES = ("llama_bias", "phi3", "bert")
CHOSEN = [name for name in SETTINGS if name != "lora_embedding"]


def in_4_bits(model):
    """The model, the linear maps of its layers packed as `load(..., nf4=True)` packs them."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layer" in path:
            small = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=torch.float32, quant_type="nf4"
            )
            small.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
            small.bias = module.bias
            model.set_submodule(path, small.to("cpu").eval())
    nf4.own_forwards(model)
    return model


def packed(name):
    """The tiny model with the linear maps of its layers in 4 bits, and the dense model of the same values."""
    model = in_4_bits(tiny(name))
    dense = tiny(name)
    for path, module in model.named_modules():
        if nf4.is_packed(getattr(module, "weight", None)):
            dense.get_submodule(path).weight.data.copy_(nf4.dequantise(module.weight))
    return model, dense


def shake(adapted):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))


def bytes_of(model):
    return {path: module.weight.data.clone() for path, module in model.named_modules() if nf4.is_packed(getattr(module, "weight", None))}


@pytest.mark.parametrize("setting", CHOSEN)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_method_on_a_4_bit_base_is_the_method_on_its_dense_weights(name, setting, tmp_path):
    small, dense = packed(name)
    before, mark = bytes_of(small), fingerprint(small)
    batch = inputs(name)
    ours, theirs = graft.adapt(small, SETTINGS[setting]), graft.adapt(dense, SETTINGS[setting])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    shake(ours)
    shake(theirs)
    with torch.no_grad():
        small(**batch)  # an evaluation first: it must not repack the weights
    outs = [model(**batch).logits for model in (small, dense)]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    for out in outs:
        out.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-4, atol=2e-4 * float(b.grad.abs().max() + 1e-6))
    torch.optim.SGD(ours.parameters(), lr=1e-3).step()
    ours.unfuse()  # a run with --fused: what is loaded below is not, and is to be the same to the bit
    with torch.no_grad():
        expected = small(**batch).logits
    ours.save(tmp_path / "adapter")
    ours.detach()
    assert all(torch.equal(value, before[path]) for path, value in bytes_of(small).items())
    assert fingerprint(small) == mark
    graft.load(small, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(small(**batch).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("setting", [name for name in MERGEABLE if name in CHOSEN])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_merge_makes_4_bit_maps_dense_and_unmerging_gives_them_back(name, setting):
    small, _ = packed(name)
    before = bytes_of(small)
    adapted = graft.adapt(small, SETTINGS[setting])
    shake(adapted)
    batch = inputs(name)
    with torch.no_grad():
        expected = small(**batch).logits
        graft.merge(adapted)
        torch.testing.assert_close(small(**batch).logits, expected, rtol=1e-5, atol=1e-5)
        graft.unmerge(adapted)
        assert torch.equal(small(**batch).logits, expected)
    adapted.detach()
    assert set(bytes_of(small)) == set(before)
    assert all(torch.equal(value, before[path]) for path, value in bytes_of(small).items())


def test_a_deep_copy_of_a_4_bit_model_runs_on_its_own():
    small, _ = packed("llama_bias")
    graft.adapt(small, SETTINGS["lora"])
    batch = inputs("llama_bias")
    assert torch.equal(copy.deepcopy(small)(**batch).logits, small(**batch).logits)


def test_evaluating_and_training_leave_the_packed_bytes_and_merging_gives_them_back():
    small, _ = packed("llama_bias")
    before, states = bytes_of(small), states_of(small)
    adapted = graft.adapt(small, SETTINGS["dora"])
    batch = inputs("llama_bias")
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-2)
    for _ in range(3):
        small.eval()
        with torch.no_grad():
            small(**batch)
            small.generate(**batch, max_new_tokens=2, do_sample=False)
        small.train()
        small(**batch).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    graft.merge(adapted)
    graft.unmerge(adapted).detach()
    assert all(torch.equal(value, before[path]) for path, value in bytes_of(small).items())
    after = states_of(small)
    assert all(torch.equal(a, b) for path, values in states.items() for a, b in zip(values, after[path], strict=True))


def states_of(model):
    """The scales of every packed weight, and what those are quantised with."""
    states = {path: module.weight.quant_state for path, module in model.named_modules() if nf4.is_packed(getattr(module, "weight", None))}
    return {path: [s.absmax.clone(), s.offset.clone(), s.state2.absmax.clone()] for path, s in states.items()}


@pytest.mark.parametrize("setting", [name for name in MERGEABLE if name in CHOSEN])
def test_a_merge_of_a_4_bit_base_is_the_dequantised_weight_changed_and_rounded_once(setting):
    small, dense = packed("llama_bias")
    ours, theirs = graft.adapt(small, SETTINGS[setting]), graft.adapt(dense, SETTINGS[setting])
    shake(ours)
    shake(theirs)
    merged = [densified(graft.merge(adapted)).state_dict() for adapted in (ours, theirs)]
    assert list(merged[0]) == list(merged[1])
    for key, value in merged[0].items():
        torch.testing.assert_close(value, merged[1][key].to(value.dtype), rtol=8e-3 if value.dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert not storage(small)
    assert all(value.dtype == torch.float32 for name, value in small.named_buffers() if "inv_freq" in name)


def test_a_7b_layer_takes_4_127_bits_a_parameter():
    # 4 bits, one 8-bit scale for 64 values, one 32-bit scale for 256 of those; the code tables are the same for every layer
    weight = bnb.nn.Params4bit(torch.randn(4096, 11008), requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
    bits = 8 * nf4.stored_bytes(weight) / weight.quant_state.shape.numel()
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)
    assert round(bits, 3) == 4.127
