"""Virtual tokens at work: a prefix's keys and values inside attention, a prompt's embeddings before the text.

A prefix enters through transformers' attention-function and mask registries: the config names `graft_sdpa` or `graft_eager`, which
put the keys and values that a root pre-hook left on each attention module before the text's own. No cache object is touched, so
every cache, beams and gradient checkpointing work. A prompt in training is n dummy positions whose embedding output is overwritten;
on a causal model without gradients it is served as a prefix, its keys and values computed once.
Positions: the text's are cumsum(mask) - 1 + n, whatever the padding.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from graft.errors import AdapterError
from graft.model.families import attention_modules

MASKS = {"sdpa": sdpa_mask, "eager": eager_mask}


class Held:
    """What an attention module's prefix is in this forward: k, v [1 or B, kv heads, n, head dim]; seen [B, n] or None for all."""

    def __init__(self, k: Tensor, v: Tensor, seen: Tensor | None) -> None:
        self.k, self.v, self.seen = k, v, seen

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model starts without: these are a forward's, not the model's."""
        return None


def attend(name: str) -> Any:
    """The attention function that puts the module's prefix before the text and calls transformers' own `name`."""

    def function(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        inner = sdpa_attention_forward if name == "sdpa" else sys.modules[type(module).__module__].eager_attention_forward
        held: Held | None = getattr(module, "graft_kv", None)
        if held is not None:
            causal = name == "sdpa" and bool(kwargs.get("is_causal", getattr(module, "is_causal", True)))
            if attention_mask is None and causal and 1 < query.shape[2] < key.shape[2]:  # an empty static cache's tail
                key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            attention_mask = extended(attention_mask, held, query, key, causal)
            rows = key.shape[0]
            key = torch.cat([held.k.to(key.dtype).expand(rows, -1, -1, -1), key], 2)
            value = torch.cat([held.v.to(value.dtype).expand(rows, -1, -1, -1), value], 2)
        return inner(module, query, key, value, attention_mask, **kwargs)

    return function


def extended(mask: Tensor | None, held: Held, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The text's mask (bool, or additive, or None) [B or 1, 1, T, S] with n columns for the prefix before it."""
    rows, length, keys, n = query.shape[0], query.shape[2], key.shape[2], held.k.shape[2]
    if mask is None:
        if held.seen is None and not (causal and length > 1):
            return None
        mask = torch.ones(length, keys, dtype=torch.bool, device=key.device)
        mask = (mask.tril() if causal and length > 1 else mask)[None, None]
    seen = torch.ones(1, n, dtype=torch.bool, device=key.device) if held.seen is None else held.seen
    columns = seen[:, None, None, :].expand(rows, mask.shape[1], length, n)
    if mask.dtype != torch.bool:
        columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, torch.finfo(mask.dtype).min)
    return torch.cat([columns, mask.expand(rows, -1, -1, -1)], -1)


for registered, masks in MASKS.items():
    AttentionInterface.register(f"graft_{registered}", attend(registered))
    AttentionMaskInterface.register(f"graft_{registered}", masks)


class Doorway(nn.Module):
    """The child `graft` of the root: holds virtual tokens' trained tensors, and lets virtual tokens in before each forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.causal = all(getattr(module, "is_causal", True) for module in attention_modules(model))
        self.open = True
        self.pending: Tensor | None = None
        self.length = 0
        self.handles: list[Any] = []
        self.implementation = ""

    def attach(self, model: nn.Module, tokens: Any) -> None:
        """Hook the root and its embeddings; `tokens()` gives the current (kv, seen, embeds) before each forward.

        Raises AdapterError where the model's attention cannot take a prefix.
        """
        self.implementation = str(model.config._attn_implementation)
        if self.implementation not in MASKS or not getattr(model, "_supports_attention_backend", False):
            raise AdapterError(
                f"virtual tokens need a model whose attention goes through transformers' registry as 'sdpa' or 'eager'; this "
                f"{type(model).__name__} has {self.implementation!r}: load it with from_pretrained(..., attn_implementation='sdpa')"
            )
        model.graft = self
        names = list(inspect.signature(model.forward).parameters)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            return ((), self.enter(module, dict(zip(names, args, strict=False)) | kwargs, tokens)) if self.open else None

        self.handles = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(lambda module, args, out: self.leave(out)),
            model.get_input_embeddings().register_forward_hook(lambda module, args, out: self.overwrite(out)),
        ]
        set_attention(model, f"graft_{self.implementation}")

    def detach(self, model: nn.Module) -> None:
        """Undo `attach`."""
        for handle in self.handles:
            handle.remove()
        place(model, None, None)
        set_attention(model, self.implementation)
        del model.graft

    @contextmanager
    def shut(self) -> Iterator[None]:
        """No virtual token enters inside this block."""
        self.open = False
        try:
            yield
        finally:
            self.open = True

    def enter(self, model: nn.Module, call: dict[str, Any], tokens: Any) -> dict[str, Any]:
        """Before a forward: leave keys and values on the attention modules, make room for embeddings, set positions."""
        kv, seen, embeds = tokens()
        text = call.get("input_ids") if call.get("input_ids") is not None else call["inputs_embeds"]
        rows = text.shape[0]
        place(model, kv, seen, rows)
        self.length, self.pending = 0, None
        if kv is not None and self.causal:
            n = kv.shape[4] if seen is None else spread(seen, rows).sum(1, keepdim=True)
            call["position_ids"] = positions(call, text) + n
        if embeds is not None:
            self.pending, self.length = embeds, embeds.shape[0]
            call = self.roomier(model, call, text, embeds)
        return call

    def roomier(self, model: nn.Module, call: dict[str, Any], text: Tensor, embeds: Tensor) -> dict[str, Any]:
        """The call with n positions before the text in everything that has a column a token."""
        rows, n = text.shape[0], embeds.shape[0]
        place_ids = positions(call, text) if self.causal else None
        fills = {"attention_mask": 1, "token_type_ids": 0, "labels": -100, "input_ids": dummy(model)}
        if past(call):  # the prompt is in the cache already: only the mask has columns for it
            fills, self.pending, self.length = {"attention_mask": 1}, None, 0
        for name, fill in fills.items():
            value = call.get(name)
            if value is not None and value.dim() == 2:
                call[name] = torch.cat([value.new_full((rows, n), fill), value], 1)
        if self.pending is None:
            return call
        if call.get("inputs_embeds") is not None:
            call["inputs_embeds"] = torch.cat([embeds.to(text.dtype).expand(rows, -1, -1), text], 1)
        if place_ids is not None:
            own = torch.arange(n, device=text.device).expand(len(place_ids), n)
            call["position_ids"] = torch.cat([own, place_ids + n], 1)
        return call

    def overwrite(self, out: Tensor) -> Tensor:
        """The embeddings [B, n + T, d] with the prompt's in the first n positions."""
        if self.pending is None or out.shape[1] < self.length:
            return out
        return torch.cat([self.pending.to(out.dtype).expand(out.shape[0], -1, -1), out[:, self.length :]], 1)

    def leave(self, out: Any) -> Any:
        """After a forward: logits of the text alone."""
        n, self.length, self.pending = self.length, 0, None
        logits = out.get("logits") if n and self.causal and hasattr(out, "get") else None
        if logits is not None and logits.dim() == 3 and logits.shape[1] > n:
            out["logits"] = logits[:, n:]
        return out


def set_attention(model: nn.Module, name: str) -> None:
    """Name the attention function in every config of the model (its modules may hold copies)."""
    for module in (model, *model.modules()):
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = name


def place(model: nn.Module, kv: Tensor | None, seen: Tensor | None, rows: int = 1) -> None:
    """Leave kv [layers, 2, 1 or R, heads, n, head dim] and seen [R, n] (R dividing rows: beams) on the attention modules."""
    for number, module in enumerate(attention_modules(model)):
        if kv is None:
            module.graft_kv = None
        else:
            k, v = (spread(kv[number, j], rows) if kv.shape[2] > 1 else kv[number, j] for j in range(2))
            module.graft_kv = Held(k, v, None if seen is None else spread(seen, rows))


def spread(value: Tensor, rows: int) -> Tensor:
    """[R, ...] -> [rows, ...], each row repeated for its beams."""
    return value if value.shape[0] in (1, rows) else value.repeat_interleave(rows // value.shape[0], 0)


def positions(call: dict[str, Any], text: Tensor) -> Tensor:
    """The text's own positions [B or 1, T]: those given, those of its mask, or from the cache's length on."""
    if call.get("position_ids") is not None:
        return call["position_ids"]
    length, mask = text.shape[1], call.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return (mask.long().cumsum(1) - 1).clamp_min(0)[:, -length:]
    start = past(call)
    return torch.arange(start, start + length, device=text.device)[None]


def past(call: dict[str, Any]) -> int:
    """How many positions the call's cache holds."""
    cache = call.get("cache") if call.get("cache") is not None else call.get("past_key_values")  # renamed in transformers 5.24
    return 0 if cache is None else int(cache.get_seq_length())


def dummy(model: nn.Module) -> int:
    """An id that stands for a virtual position: any that is not the padding's, which models look for."""
    return 1 if getattr(model.config, "pad_token_id", None) == 0 else 0
