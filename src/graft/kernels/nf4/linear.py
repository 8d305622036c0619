"""Linear layers whose frozen weight is packed in 4 bits.

    y = x W^T + bias        W [out, in] is dequantised in the forward pass and again in the backward pass
    dx = dy W

No dense copy of W outlives either pass, so training memory is that of the packed bytes plus one layer's weight. W itself is frozen.

The forward pass of bitsandbytes' own `Linear4bit` is never used: on CPUs with avx512_bf16 one evaluation rewrites the packed bytes in
place, and from then on training gets no gradient through the layer.
"""

import types
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.kernels.nf4.reference import is_packed, refuse_repacked
from graft.kernels.nf4.unpack import dequantise


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
            dx = (dy @ dequantise(ctx.weight, after=dy).to(dy.dtype)).to(ctx.dtype)
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
