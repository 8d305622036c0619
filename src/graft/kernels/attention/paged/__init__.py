"""Attention of a packed batch over keys and values in pages: by Triton kernels on CUDA, in plain torch elsewhere.

    out[t] = softmax(s q[t] K^T) V       K, V: what the request of token t has in its pages, up to t itself

Each request's keys and values lie in pages [page, K, d] anywhere in a cache, which a table names in order (Kwon et al. 2023,
arXiv:2309.06180). Requests bring any number of tokens, one after another in a packed row: chunks of prompts beside single new tokens.
"""

import importlib.util

from torch import Tensor

from graft.kernels.attention.paged import reference
from graft.kernels.attention.paged.batch import Batch

__all__ = ["Batch", "attend", "parts_for", "takes", "write"]

TRITON = importlib.util.find_spec("triton") is not None
if TRITON:
    from graft.kernels.attention.paged import launch


def takes(q: Tensor) -> bool:
    """Whether kernels run on queries like these [T, H, d]."""
    return TRITON and launch.takes(q)


def parts_for(rows: int, kv_heads: int, longest: int) -> int:
    """Into how many parts a batch of single tokens has its keys cut best (`Batch.parts`)."""
    return launch.parts_for(rows, kv_heads, longest) if TRITON else 1


def write(batch: Batch, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """Put new keys and values [T, K, d] into their requests' pages [pages, page, K, d], which are contiguous."""
    (launch if takes(k) else reference).write(batch, k, v, k_pages, v_pages)


def attend(batch: Batch, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float, cap: float = 0.0) -> Tensor:
    """out [T, H, d] of q [T, H, d]: each token over its request's keys up to itself. `cap` c > 0 bends scores to c tanh(score / c)."""
    out: Tensor = (launch if takes(q) else reference).attend(batch, q, k_pages, v_pages, scale, cap)
    return out
