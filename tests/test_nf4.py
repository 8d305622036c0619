"""4-bit linear layers: same values and gradients as the dense dequantised layer, and packed bytes that never change."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from graft.errors import ModelError
from graft.kernels import nf4

bnb = pytest.importorskip("bitsandbytes")


def packed_linear(out=48, inner=64, dtype=torch.float32, bias=True, seed=0):
    """A quantised Linear4bit, as `load(..., nf4=True)` makes them."""
    torch.manual_seed(seed)
    dense = nn.Linear(inner, out, bias=bias, dtype=dtype)
    module = bnb.nn.Linear4bit(inner, out, bias=bias, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    module.weight = bnb.nn.Params4bit(dense.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
    if bias:
        module.bias = dense.bias
    module = module.to("cpu")
    nf4.own_forward(module)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64), (2, 1, 3, 64), (0, 64)])
def test_values_and_gradients_are_those_of_the_dense_layer(dtype, shape):
    module = packed_linear(dtype=dtype)
    dense = nf4.dequantise(module.weight)
    assert dense.shape == (48, 64)
    assert dense.dtype == dtype
    x = torch.randn(shape).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, reference = module(ours), F.linear(theirs, dense, module.bias)
    assert torch.equal(y, reference)
    dy = torch.randn_like(y)
    y.backward(dy)
    reference.backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad.dtype == dtype


@pytest.mark.parametrize("shape", [(48, 64), (48, 32), (64, 176), (33, 200), (7, 24), (5, 7), (1, 130)])
def test_dequantised_values_are_near_those_that_were_quantised_however_blocks_and_rows_meet(shape):
    # bitsandbytes' kernel for CPUs takes other blocks' scales where a row does not end with a block: rows of other sizes tell
    dense = torch.randn(shape) * torch.logspace(-1, 1, shape[0])[:, None]
    weight = bnb.nn.Params4bit(dense.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False).to("cpu")
    found = nf4.dequantise(weight)
    assert found.shape == shape
    blocks = [F.pad(value.flatten(), (0, -value.numel() % 64)).view(-1, 64) for value in (found, dense)]
    assert ((blocks[0] - blocks[1]).abs().amax(1) <= 0.16 * blocks[1].abs().amax(1)).all(), "half of the widest step of NF4"


def test_strided_input_and_bias_gradient():
    module = packed_linear()
    x = torch.randn(64, 7).t().requires_grad_()
    assert not x.is_contiguous()
    module.bias.requires_grad_(True)
    module(x).square().sum().backward()
    bias = module.bias.detach().clone().requires_grad_()
    F.linear(x, nf4.dequantise(module.weight), bias).square().sum().backward()
    torch.testing.assert_close(module.bias.grad, bias.grad)


def test_evaluating_leaves_the_packed_bytes_and_the_gradients():
    model = nn.Sequential(packed_linear(64, 64), nn.SiLU(), packed_linear(32, 64, seed=1))
    before = [model[i].weight.data.clone() for i in (0, 2)]
    x = torch.randn(4, 64)
    model.eval()
    with torch.no_grad():
        evaluated = model(x)
    assert not evaluated.requires_grad
    model.train()
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for bytes_before, i in zip(before, (0, 2), strict=True):
        assert torch.equal(model[i].weight.data, bytes_before)
    assert torch.equal(model(x), evaluated)


def test_no_dense_copy_is_kept_for_the_backward_pass():
    module, x = packed_linear(), torch.randn(3, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x)
    assert kept == []


def test_autocast_gives_the_input_its_own_dtype_back():
    module, x = packed_linear(), torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == torch.float32


def test_double_quantisation_takes_about_four_and_an_eighth_bits():
    weight = packed_linear(1024, 1024, bias=False).weight
    bits = 8 * nf4.stored_bytes(weight) / (1024 * 1024)
    assert 4.12 < bits < 4.14


def test_a_copy_of_the_model_uses_its_own_weights():
    model = nn.Sequential(packed_linear())
    twin = copy.deepcopy(model)
    assert twin[0].forward.__self__ is twin[0]
    assert torch.equal(twin(torch.ones(2, 64)), model(torch.ones(2, 64)))


def test_own_forwards_counts_packed_modules_only():
    model = nn.Sequential(packed_linear(), nn.Linear(48, 48), nn.LayerNorm(48))
    assert nf4.own_forwards(model) == 1
    assert nf4.own_forwards(nn.Linear(3, 3)) == 0


def test_a_weight_that_bitsandbytes_repacked_is_refused():
    module = packed_linear()
    module.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match="load it again"):
        nf4.dequantise(module.weight)
    with pytest.raises(ModelError, match="load it again"):
        nf4.own_forward(module)


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch):
    module = packed_linear()
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.functional", None)
    with pytest.raises(ModelError, match=r"graft-peft\[nf4\]"):
        nf4.dequantise(module.weight)
