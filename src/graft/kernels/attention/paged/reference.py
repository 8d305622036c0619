"""Paged attention in plain torch: the truth that the kernels are held to, one request after another."""

import torch
from torch import Tensor

from graft.kernels.attention.paged.batch import Batch


def write(batch: Batch, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """Put the new keys and values [T, K, d] where their requests' pages [pages, page, K, d] have room for them."""
    page = k_pages.shape[1]
    for row, first, end, length in batch.requests():
        place = torch.arange(length - (end - first), length, device=k.device)
        slot = batch.table[row, place // page].long() * page + place % page
        k_pages.flatten(0, 1)[slot], v_pages.flatten(0, 1)[slot] = k[first:end], v[first:end]


def attend(batch: Batch, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float, cap: float = 0.0) -> Tensor:
    """out [T, H, d] of q [T, H, d], each token over its own request's keys up to itself; 0 where a token is nobody's."""
    page, shared = k_pages.shape[1], q.shape[1] // k_pages.shape[2]
    out = torch.zeros_like(q)
    for row, first, end, length in batch.requests():
        place = torch.arange(length, device=q.device)
        slot = batch.table[row, place // page].long() * page + place % page
        k, v = (pages.flatten(0, 1)[slot].float().repeat_interleave(shared, 1) for pages in (k_pages, v_pages))
        s = torch.einsum("thd,nhd->htn", q[first:end].float(), k) * scale
        s = cap * torch.tanh(s / cap) if cap else s
        hidden = place[None, :] > place[length - (end - first) :, None]
        out[first:end] = torch.einsum("htn,nhd->thd", s.masked_fill(hidden, -torch.inf).softmax(-1), v).to(q.dtype)
    return out
