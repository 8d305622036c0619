"""The prefix's part of a joint softmax by plain products, for every device: float32 (float64 where the query is) throughout.

    S = s q k_p^T       lse = log(exp(lse_text) + sum_n exp S)       W = exp(S - lse)       out = exp(lse_text - lse) out_text + W v_p
    dS = s W (do v_p^T - D),  D_t = do_t . out_t       dq += dS k_p       dk_p = sum dS^T q       dv_p = sum W^T do

q, out, do [B, H, T, d]; k_p, v_p in kv [2, 1 or B, K, n, d]; S [B, H, T, n]; lse [B, H, T]. The sums run over the heads that share a
key, and over the rows where they share the prefix.
"""

import torch
from torch import Tensor


def joined(query: Tensor, kv: Tensor, out: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out [B, H, T, d] and lse [B, H, T] of text and prefix together, from the text's."""
    k, v = widened(query, kv, lse.dtype)
    scores = query.to(lse.dtype) @ k.mT * scale
    both = torch.logaddexp(lse, scores.logsumexp(-1))
    joint = (lse - both).exp()[..., None] * out + (scores - both[..., None]).exp() @ v
    return joint.to(out.dtype), both


def differentiated(
    grad: Tensor, query: Tensor, kv: Tensor, out: Tensor, lse: Tensor, dq: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor]:
    """dq [B, H, T, d] with the prefix's part added (None stays None), and dkv as kv in lse's dtype, from the joint out and lse."""
    k, v = widened(query, kv, lse.dtype)
    q, do = query.to(lse.dtype), grad.to(lse.dtype)
    weights = (q @ k.mT * scale - lse[..., None]).exp()
    slopes = weights * (do @ v.mT - (do * out).sum(-1, keepdim=True)) * scale
    dkv = torch.stack([slopes.mT @ q, weights.mT @ do])
    dkv = dkv.view(2, len(query), kv.shape[2], -1, *kv.shape[3:]).sum(3)
    dkv = dkv if kv.shape[1] > 1 else dkv.sum(1, keepdim=True)
    return None if dq is None else (dq + slopes @ k).to(dq.dtype), dkv


def widened(query: Tensor, kv: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """k_p and v_p [1 or B, H, n, d] as the text's kernel would read them: rounded to the query's dtype, held in `dtype`."""
    k, v = kv.to(query.dtype).to(dtype).repeat_interleave(query.shape[1] // kv.shape[2], 2)
    return k, v
