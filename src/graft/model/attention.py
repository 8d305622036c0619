"""A prefix inside attention, through transformers' attention-function and mask registries.

The config names `graft_sdpa` or `graft_eager`, which put the keys and values that the doorway left on each attention module before the
text's own, and call transformers' function. No cache object is touched, so every cache, beams and checkpointing work. A layer with a
sliding window sees the virtual tokens that are in its window. Where a text without padding is attended causally from its first token on,
as in training, no mask is made: its own fused kernel runs, and the prefix is joined to it (graft.kernels.attention).
"""

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from graft.kernels import attention
from graft.pack import turns

MASKS = {"sdpa": sdpa_mask, "eager": eager_mask}
MORE = ("softcap", "position_bias", "s_aux")
"""What an attention function may be asked for beyond a plain softmax."""


class Held:
    """What an attention module's prefix is in this forward.

    kv [2, 1 or B, kv heads, n, head dim]; seen [B, n] or None for all; where [1 or B, T], the text's positions, None on encoders; counted:
    whether these count from the prefix's length on, so that none is as large as n + T.
    """

    def __init__(self, kv: Tensor, seen: Tensor | None, where: Tensor | None, counted: bool) -> None:
        self.kv, self.seen, self.where, self.counted = kv, seen, where, counted

    def whole(self, window: int | None, length: int) -> bool:
        """Whether each position of a text of `length` is known to see the whole prefix, no value being looked at."""
        held = window is None or self.where is None or (self.counted and self.kv.shape[3] + length <= window)
        return held and self.seen is None

    def visible(self, window: int | None) -> Tensor | None:
        """Which prefix positions each text position sees, [1 or B, 1 or T, n]; None where all do."""
        if window is None or self.where is None:
            return None if self.seen is None else self.seen[:, None, :]
        seen = torch.ones(1, self.kv.shape[3], dtype=torch.bool, device=self.kv.device) if self.seen is None else self.seen
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
            asked = kwargs.get("is_causal")
            causal = name == "sdpa" and bool(getattr(module, "is_causal", True) if asked is None else asked)
            if attention_mask is None and causal and 1 < query.shape[2] < key.shape[2]:  # an empty static cache's tail
                key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            if attention_mask is None and causal and joins(held, query, key, value, kwargs):
                return attention.prefixed(query, key, value, held.kv, kwargs.get("scaling")).transpose(1, 2).contiguous(), None
            attention_mask = extended(attention_mask, held.visible(kwargs.get("sliding_window")), held.kv.shape[3], query, key, causal)
            own = held.kv.to(key.dtype).expand(-1, key.shape[0], -1, -1, -1)
            key, value = torch.cat([own[0], key], 2), torch.cat([own[1].to(value.dtype), value], 2)
        return inner(module, query, key, value, attention_mask, **kwargs)

    return function


def joins(held: Held, query: Tensor, key: Tensor, value: Tensor, asked: dict[str, Any]) -> bool:
    """Whether the text's own fused causal attention and the prefix can be joined: all see all of it, and nothing more is asked.

    A constant to torch.compile, for a choice by the tensors' values would break its graph.
    """
    more = asked.get("dropout") or any(asked.get(name) is not None for name in MORE)
    if more or query.shape[2] == 1 or not held.whole(asked.get("sliding_window"), query.shape[2]):
        return False
    return attention.is_fast(query, key, value)


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


def place(
    modules: list[Any],
    kv: Tensor | None = None,
    seen: Tensor | None = None,
    where: Tensor | None = None,
    counted: bool = False,
    rows: int = 1,
) -> None:
    """Leave kv [layers, 2, 1 or R, heads, n, head dim] and seen [R, n] (R dividing rows: beams) on the attention modules.

    All layers are cut from kv at once: one by one, each would make a gradient as large as all together.
    """
    if kv is None:
        for module in modules:
            module.graft_kv = None
        return
    seen = None if seen is None else spread(seen, rows)
    for module, own in zip(modules, kv.unbind(0), strict=True):
        module.graft_kv = Held(spread(own, rows, 1), seen, where, counted)


def spread(value: Tensor, rows: int, dim: int = 0) -> Tensor:
    """[..., R, ...] -> [..., rows, ...] along `dim`, each row repeated for its beams; 1 stays 1."""
    return value if value.shape[dim] in (1, rows) else value.repeat_interleave(turns(value.shape[dim], rows), dim)
