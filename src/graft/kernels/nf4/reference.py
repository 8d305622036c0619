"""Linear layers whose frozen weight is stored in 4 bits (NF4, QLoRA, https://arxiv.org/abs/2305.14314).

    y = x W^T + bias        W [out, in] is dequantised in the forward pass and again in the backward pass
    dx = dy W

No dense copy of W outlives either pass, so training memory is that of the packed bytes plus one layer's weight. W itself is frozen.

The packed weight is a bitsandbytes `Params4bit`: two values a byte, one absmax a block of 64, and with double quantisation that absmax
in 8 bits: 4.127 bits a parameter. The forward pass of bitsandbytes' own `Linear4bit` is never used: on CPUs with avx512_bf16 one
evaluation rewrites the packed bytes in place, and from then on training gets no gradient through the layer.
"""

import types
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.errors import ModelError

MISSING = "4-bit weights need bitsandbytes: run `pip install 'graft-peft[nf4]'`"


def is_packed(weight: Any) -> bool:
    """Whether `weight` is a 4-bit parameter that has been quantised."""
    return getattr(weight, "quant_state", None) is not None


def dequantise(weight: Any) -> Tensor:
    """The dense weight [out, in] of a packed 4-bit parameter, in the dtype it was quantised from.

    Raises ModelError if bitsandbytes is missing, or if its own forward pass has already rewritten the packed bytes.
    """
    try:
        from bitsandbytes.functional import dequantize_4bit
    except ImportError as error:
        raise ModelError(MISSING) from error
    refuse_repacked(weight.quant_state)
    with torch.no_grad():
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return dense


def refuse_repacked(state: Any) -> None:
    """Raise ModelError if bitsandbytes repacked a weight for its CPU kernel, which keeps no gradient."""
    if getattr(state, "packing_format_for_cpu", False):
        raise ModelError("bitsandbytes has repacked this model's 4-bit weights by evaluating it: load it again, with graft's load")


class Linear(torch.autograd.Function):
    """y = x W^T + bias for a packed W; gradients for x and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """From x [..., in] to y [..., out], computed in x's dtype."""
        ctx.weight, ctx.dtype = weight, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, dequantise(weight).to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """From dy [..., out] to dx [..., in] and, if the bias is trained, its gradient [out]."""
        (dy,) = grads
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ dequantise(ctx.weight).to(dy.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            db = dy.reshape(-1, dy.shape[-1]).sum(0).to(ctx.bias_dtype)
        return dx, None, db


def linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """The product of x [..., in] and a packed weight [out, in], plus bias [out]: y [..., out] in x's dtype.

    Any strides and any leading dimensions. Raises ModelError as `dequantise` does.
    """
    y: Tensor = Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


def forward(module: nn.Module, x: Tensor) -> Tensor:
    """What a 4-bit linear module computes once it has its own forward."""
    return linear(x, module.weight, module.bias)  # type: ignore[arg-type]


def own_forward(module: nn.Module) -> None:
    """Give one 4-bit linear module `linear` as its forward, on the instance, so that bitsandbytes' own never runs.

    A bound method, not a closure: `copy.deepcopy` of the model then binds the copy's method to the copy. Raises ModelError if
    bitsandbytes has already repacked the weight.
    """
    refuse_repacked(getattr(module.weight, "quant_state", None))
    module.forward = types.MethodType(forward, module)


def own_forwards(model: nn.Module) -> int:
    """Give every packed 4-bit linear module of `model` its own forward; the number of them. Needs no bitsandbytes if there are none."""
    modules = [module for module in model.modules() if isinstance(module, nn.Linear) and is_packed(module.weight)]
    for module in modules:
        own_forward(module)
    return len(modules)


def state(weight: Any) -> dict[str, Any]:
    """A packed weight's quantisation state: block scales, code tables and the scales' own, tensors and plain values by name."""
    found: dict[str, Any] = weight.quant_state.as_dict()
    return found


def stored_bytes(weight: Any) -> int:
    """Bytes that a packed weight holds: its 4-bit values, its block scales, and the scales' own scales if those are quantised too."""
    state = weight.quant_state
    tensors = [weight.data, state.absmax]
    if state.nested:
        tensors += [state.offset, state.state2.absmax]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
