"""Causal attention of a text that also sees a prefix, the plain torch version: the prefix's keys before the text's, and a mask.

    out_t = sum_j softmax_j(s q_t . [k_p; k]_j) [v_p; v]_j          over all n positions of the prefix and the text's up to t

q [B, H, T, d], k and v [B, K, T, d], the prefix kv [2, 1 or B, K, n, d] (keys, then values), out [B, H, T, d]; K divides H, and heads in
groups of H/K share a key. s is 1/sqrt(d) unless given. Li and Liang 2021, arXiv:2101.00190.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def prefixed(query: Tensor, key: Tensor, value: Tensor, kv: Tensor, scale: float | None = None) -> Tensor:
    """out [B, H, T, d] in the query's dtype, differentiable in all four; the softmax is taken as torch's own attention takes it."""
    rows, length, n = key.shape[0], query.shape[2], kv.shape[3]
    key, value = (torch.cat([own.to(text.dtype).expand(rows, -1, -1, -1), text], 2) for own, text in zip(kv, (key, value), strict=True))
    mask = torch.ones(length, n + length, dtype=torch.bool, device=query.device).tril(n)
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
