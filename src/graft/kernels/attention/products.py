"""The prefix's part of a joint softmax by plain products, for every device: float32 (float64 where the query is) throughout.

    S = s q k_p^T       lse = log(exp(lse_text) + sum_n exp S)       W = exp(S - lse)       out = exp(lse_text - lse) out_text + W v_p
    dS = s W (do v_p^T - D),  D_t = do_t . out_t       dq += dS k_p       dk_p = sum dS^T q       dv_p = sum W^T do

q, out, do [B, H, T, d]; k_p, v_p in kv [2, 1 or B, K, n, d]; S [B, H, T, n]; lse [B, H, T]. The sums run over the heads that share a
key, and over the rows where they share the prefix. What is multiplied is *stacked*: [H, B T, ...] where the rows share the prefix, no copy
of what lies in memory as [B, T, H, d], and [B H, T, ...] where they do not.
"""

import torch
from torch import Tensor


def joined(query: Tensor, kv: Tensor, out: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out [B, H, T, d] and lse [B, H, T] of text and prefix together, from the text's."""
    shared = kv.shape[1] == 1
    k, v = widened(query, kv, lse.dtype)
    scores = torch.bmm(stacked(query.to(lse.dtype), shared), k.mT).mul_(scale)
    before = stacked(lse[..., None], shared)
    both = torch.logaddexp(before, scores.logsumexp(-1, keepdim=True))
    prefix = unstacked(torch.bmm(scores.sub_(both).exp_(), v), query, shared)
    joint = torch.addcmul(prefix, unstacked((before - both).exp_(), query, shared), out.to(lse.dtype))
    return joint.to(out.dtype), unstacked(both, query, shared)[..., 0]


def differentiated(
    grad: Tensor, query: Tensor, kv: Tensor, out: Tensor, lse: Tensor, dq: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor]:
    """dq [B, H, T, d] with the prefix's part added (None stays None), and dkv as kv in lse's dtype, from the joint out and lse."""
    shared = kv.shape[1] == 1
    k, v = widened(query, kv, lse.dtype)
    q, do = stacked(query.to(lse.dtype), shared), stacked(grad.to(lse.dtype), shared)
    weights = torch.bmm(q, k.mT).mul_(scale).sub_(stacked(lse[..., None], shared)).exp_()
    D = stacked((grad.to(lse.dtype) * out).sum(-1, keepdim=True), shared)
    slopes = torch.bmm(do, v.mT).sub_(D).mul_(weights).mul_(scale)
    dkv = torch.stack([torch.bmm(slopes.mT, q), torch.bmm(weights.mT, do)])
    dkv = dkv.view(2, *kv.shape[1:3], -1, *kv.shape[3:]).sum(3)
    return None if dq is None else (dq + unstacked(torch.bmm(slopes, k), query, shared)).to(dq.dtype), dkv


def widened(query: Tensor, kv: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """k_p and v_p, stacked [.., n, d], as the text's kernel would read them: rounded to the query's dtype, held in `dtype`."""
    k, v = kv.to(query.dtype).to(dtype).repeat_interleave(query.shape[1] // kv.shape[2], 2).flatten(1, 2)
    return k, v


def stacked(x: Tensor, shared: bool) -> Tensor:
    """x [B, H, T, ...] as [H, B T, ...] or [B H, T, ...]."""
    return x.transpose(0, 1).flatten(1, 2) if shared else x.flatten(0, 1)


def unstacked(x: Tensor, query: Tensor, shared: bool) -> Tensor:
    """x [H, B T, ...] or [B H, T, ...] as [B, H, T, ...]."""
    rows, heads, length, _ = query.shape
    return x.view(heads, rows, length, -1).transpose(0, 1) if shared else x.view(rows, heads, length, -1)
