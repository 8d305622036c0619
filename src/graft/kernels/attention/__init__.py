"""Causal attention of a text that also sees a prefix: by fused kernels where torch has one, the plain version elsewhere."""

import torch
from torch import Tensor

from graft.kernels.attention import joint, reference, stock

__all__ = ["is_fast", "prefixed"]
SHORT = 512  # tokens of a text below which a CPU is faster with a mask: it has no launches to save, and a small mask costs it little


def is_fast(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `prefixed` runs these [B, H, T, d], [B, K, T, d] by a fused kernel; a constant to torch.compile."""
    if query.shape[2] != key.shape[2] or query.shape[3] != value.shape[3] or (query.device.type == "cpu" and query.shape[2] < SHORT):
        return False
    return bool(stock.available(query.device, computed(query), query.shape[3], query.shape[1] != key.shape[1]))


def prefixed(query: Tensor, key: Tensor, value: Tensor, kv: Tensor, scale: float | None = None) -> Tensor:
    """out [B, H, T, d] of q [B, H, T, d], k and v [B, K, T, d] and the prefix kv [2, 1 or B, K, n, d]; `scale` or 1/sqrt(d).

    Under autocast it is computed in autocast's dtype, as torch's own attention is.
    """
    query, key, value = (x.to(computed(query)) for x in (query, key, value))
    runs = joint.prefixed if is_fast(query, key, value) else reference.prefixed
    return runs(query, key, value, kv, scale)


def computed(query: Tensor) -> torch.dtype:
    """The dtype that attention is computed in."""
    kind = query.device.type
    if query.dtype == torch.float64 or kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return query.dtype
    return torch.get_autocast_dtype(kind)
