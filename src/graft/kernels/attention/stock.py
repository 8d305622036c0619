"""Causal attention by torch's own fused kernels, forward and backward apart, with the log-sum-exp between them.

    S = s q k^T, causal        lse_t = log sum_j exp S_tj        out = exp(S - lse) v
    P = exp(S - lse)           D_t = do_t . out_t                dS = P (do v^T - D)          dq = s dS k,  dk = s dS^T q,  dv = P^T do

q, out, do [B, H, T, d], k and v [B, K, T, d], lse [B, H, T] in float32 (float64 where q is). The backward kernels read out and lse as they
are given: with those of a softmax over more keys than k they make its exact gradients for these keys.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

aten = torch.ops.aten
HERE = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available(device: torch.device, dtype: torch.dtype, head_dim: int, grouped: bool) -> bool:
    """Whether torch would run causal attention of this kind by a kernel of this module; a constant to torch.compile.

    `grouped`: whether several heads share a key.
    """
    known = device.type == "cpu" or (device.type == "cuda" and torch.version.hip is None and head_dim % 8 == 0)
    return known and choice(device, dtype, (2 if grouped else 1, 1, 256, head_dim)) in HERE


def choice(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> SDPBackend:
    """What torch chooses at this moment to train causal attention of the shape (H, K, T, d), its switches considered."""
    heads, groups, length, dim = shape
    with torch.enable_grad():
        one = torch.empty(dim, device=device, dtype=dtype, requires_grad=True)
        query, key = one.expand(1, heads, length, dim), one.expand(1, groups, length, dim)
        return SDPBackend(torch._fused_sdp_choice(query, key, key, None, 0.0, True, enable_gqa=heads != groups))


def is_cudnn(query: Tensor, key: Tensor) -> bool:
    """Whether torch prefers cuDNN's kernel here, to flash attention."""
    shape = (query.shape[1], key.shape[1], query.shape[2], query.shape[3])
    return query.is_cuda and choice(query.device, query.dtype, shape) == SDPBackend.CUDNN_ATTENTION


def forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out [B, H, T, d] and lse [B, H, T] of the text alone."""
    if not query.is_cuda:
        found = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)
    elif is_cudnn(query, key):
        found = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, True, scale=scale)
    else:
        found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)
    return found[0], found[1].reshape(query.shape[:3])


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq [B, H, T, d], dk and dv [B, K, T, d] from do, and the out and lse of the whole softmax."""
    saved = (grad, query, key, value, out)
    length = query.shape[2]
    found: Any
    if not query.is_cuda:
        found = aten._scaled_dot_product_flash_attention_for_cpu_backward(*saved, lse, 0.0, True, scale=scale)
    elif is_cudnn(query, key):
        unused = torch.zeros((), dtype=torch.int64, device=query.device)  # dropout's seed and offset
        lse = lse.view(*lse.shape, *[1] * (cudnn_dimensions() - 3))
        found = aten._scaled_dot_product_cudnn_attention_backward(
            *saved, lse, unused, unused, None, None, None, length, length, 0.0, True, scale=scale
        )
    else:
        unused = torch.zeros(2, dtype=torch.uint64, device=query.device)
        found = aten._scaled_dot_product_flash_attention_backward(
            *saved, lse, None, None, length, length, 0.0, True, unused, unused, scale=scale
        )
    dq, dk, dv = found
    return dq, dk, dv


@functools.cache
def cudnn_dimensions() -> int:
    """How many dimensions cuDNN's log-sum-exp has in this version of torch: [B, H, T], or with a 1 behind."""
    x = torch.empty(1, 1, 8, 8, dtype=torch.bfloat16, device="meta")
    return int(aten._scaled_dot_product_cudnn_attention(x, x, x, None, True, 0.0, True)[1].dim())
