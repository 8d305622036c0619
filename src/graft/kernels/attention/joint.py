"""Causal attention of a text that also sees a prefix, by torch's fused causal kernel and one log-sum-exp over both.

    out = g out_prefix + (1 - g) out_text        lse = log(exp(lse_prefix) + exp(lse_text))        g = exp(lse_prefix - lse)

In the backward pass the fused kernel is given the joint out and lse, from which it makes the joint softmax's own dq, dk and dv for the
text (see `stock`); the prefix's share is added. No mask, and no keys beside each other: the text's kernel runs as without a prefix.
Shapes as in `reference`. The prefix's share is Triton's where there is a GPU and Triton, else plain products.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from graft.kernels.attention import products, stock

TRITON = importlib.util.find_spec("triton") is not None
if TRITON:
    from graft.kernels.attention import tiles


@torch.library.custom_op("graft::prefixed", mutates_args=())
def forward(query: Tensor, key: Tensor, value: Tensor, kv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The joint out [B, H, T, d] and lse [B, H, T]."""
    with torch.autocast(query.device.type, enabled=False):
        out, lse = part(query, kv).joined(query, kv, *stock.forward(query, key, value, scale), scale)
        return rows_first(out), lse.contiguous()


@torch.library.custom_op("graft::prefixed_backward", mutates_args=())
def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kv: Tensor, out: Tensor, lse: Tensor, scale: float, text: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv (empty unless `text`: the first layer's are often not asked for) and dkv."""
    with torch.autocast(query.device.type, enabled=False):
        grad = rows_first(grad)
        none = query.new_empty(0)
        dq, dk, dv = stock.backward(grad, query, key, value, out, lse, scale) if text else (None, none, none.clone())
        dq, dkv = part(query, kv).differentiated(grad, query, kv, out, lse, dq, scale)
        if dq is None:
            return none.clone(), dk, dv, dkv.to(kv.dtype).contiguous()
        return rows_first(dq), rows_first(dk), rows_first(dv), dkv.to(kv.dtype).contiguous()


def part(query: Tensor, kv: Tensor) -> Any:
    """The module that runs the prefix's share."""
    return tiles if TRITON and tiles.takes(query, kv) else products


def rows_first(x: Tensor) -> Tensor:
    """x [B, H, T, d] laid out in memory as [B, T, H, d], as projections write it: a copy only where it is not."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def laid(x: Tensor) -> Tensor:
    """An empty tensor like x [B, H, T, d], so laid out."""
    rows, heads, length, dim = x.shape
    return x.new_empty(rows, length, heads, dim).transpose(1, 2)


@forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, kv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return laid(query), query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))


@backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kv: Tensor, out: Tensor, lse: Tensor, scale: float, text: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (laid(x) if text else x.new_empty(0) for x in (query, key, value))
    return dq, dk, dv, kv.new_empty(kv.shape)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """What the backward pass reads: what torch's own attention keeps, and the prefix."""
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.scale = inputs[4]


def slopes(ctx: Any, grad: Tensor, unused: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, None]:
    """The gradients of all inputs."""
    text = any(ctx.needs_input_grad[:3])
    dq, dk, dv, dkv = backward(grad, *ctx.saved_tensors, ctx.scale, text)
    return (dq, dk, dv, dkv, None) if text else (None, None, None, dkv, None)


forward.register_autograd(slopes, setup_context=keep)


def prefixed(query: Tensor, key: Tensor, value: Tensor, kv: Tensor, scale: float | None = None) -> Tensor:
    """out [B, H, T, d], differentiable once in all four tensors; q, k and v of one dtype, kv of any."""
    out: Tensor = forward(query, key, value, kv, query.shape[-1] ** -0.5 if scale is None else scale)[0]
    return out
