"""A prefix inside attention, through transformers' attention-function and mask registries.

The config names `graft_sdpa` or `graft_eager`, which put the keys and values that the doorway left on each attention module before the
text's own, and call transformers' function. No cache object is touched, so every cache, beams and checkpointing work. A layer with a
sliding window sees the virtual tokens that are in its window.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

MASKS = {"sdpa": sdpa_mask, "eager": eager_mask}


class Held:
    """What an attention module's prefix is in this forward.

    k, v [1 or B, kv heads, n, head dim]; seen [B, n] or None for all; where [1 or B, T], the text's positions, None on encoders.
    """

    def __init__(self, k: Tensor, v: Tensor, seen: Tensor | None, where: Tensor | None) -> None:
        self.k, self.v, self.seen, self.where = k, v, seen, where

    def visible(self, window: int | None) -> Tensor | None:
        """Which prefix positions each text position sees, [1 or B, 1 or T, n]; None where all do."""
        if window is None or self.where is None:
            return None if self.seen is None else self.seen[:, None, :]
        seen = torch.ones(1, self.k.shape[2], dtype=torch.bool, device=self.k.device) if self.seen is None else self.seen
        own = seen.long().cumsum(1) - 1
        return seen[:, None, :] & (self.where[:, :, None] - own[:, None, :] < window)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model starts without: these are a forward's, not the model's."""
        return None


def attend(name: str) -> Any:
    """The attention function that puts the module's prefix before the text and calls transformers' own `name`."""

    def function(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        inner = sdpa_attention_forward if name == "sdpa" else sys.modules[type(module).__module__].eager_attention_forward
        held: Held | None = getattr(module, "graft_kv", None)
        if held is not None:
            causal = name == "sdpa" and bool(kwargs.get("is_causal", getattr(module, "is_causal", True)))
            if attention_mask is None and causal and 1 < query.shape[2] < key.shape[2]:  # an empty static cache's tail
                key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            attention_mask = extended(attention_mask, held.visible(kwargs.get("sliding_window")), held.k.shape[2], query, key, causal)
            rows = key.shape[0]
            key = torch.cat([held.k.to(key.dtype).expand(rows, -1, -1, -1), key], 2)
            value = torch.cat([held.v.to(value.dtype).expand(rows, -1, -1, -1), value], 2)
        return inner(module, query, key, value, attention_mask, **kwargs)

    return function


def extended(mask: Tensor | None, visible: Tensor | None, n: int, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The text's mask (bool, or additive, or None) [B or 1, 1, T, S] with n columns for the prefix before it."""
    rows, length, keys = query.shape[0], query.shape[2], key.shape[2]
    if mask is None:
        if visible is None and not (causal and length > 1):
            return None
        mask = torch.ones(length, keys, dtype=torch.bool, device=key.device)
        mask = (mask.tril() if causal and length > 1 else mask)[None, None]
    if visible is None:
        visible = torch.ones(1, 1, n, dtype=torch.bool, device=key.device)
    columns = visible[:, None].expand(rows, mask.shape[1], length, n)
    if mask.dtype != torch.bool:
        columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, torch.finfo(mask.dtype).min)
    return torch.cat([columns, mask.expand(rows, -1, -1, -1)], -1)


for registered, masks in MASKS.items():
    AttentionInterface.register(f"graft_{registered}", attend(registered))
    AttentionMaskInterface.register(f"graft_{registered}", masks)


def set_attention(model: Any, name: str) -> None:
    """Name the attention function in every config of the model (its modules may hold copies)."""
    for module in (model, *model.modules()):
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = name


def place(attention: list[Any], kv: Tensor | None, seen: Tensor | None, where: Tensor | None, rows: int = 1) -> None:
    """Leave kv [layers, 2, 1 or R, heads, n, head dim] and seen [R, n] (R dividing rows: beams) on the attention modules."""
    for number, module in enumerate(attention):
        if kv is None:
            module.graft_kv = None
        else:
            k, v = (spread(kv[number, j], rows) if kv.shape[2] > 1 else kv[number, j] for j in range(2))
            module.graft_kv = Held(k, v, None if seen is None else spread(seen, rows), where)


def spread(value: Tensor, rows: int) -> Tensor:
    """[R, ...] -> [rows, ...], each row repeated for its beams."""
    return value if value.shape[0] in (1, rows) else value.repeat_interleave(rows // value.shape[0], 0)
