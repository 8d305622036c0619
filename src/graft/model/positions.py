"""Which columns and positions a text and the virtual tokens before it have in a call of a model.

A prompt's columns stand between each row's padding and its text. The text's positions are cumsum(mask) - 1, whatever the padding.
"""

import inspect
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from graft.errors import TrainingError
from graft.forms import VirtualTokens
from graft.method import Method, makes


def context(model: Any) -> int | None:
    """The positions that a model has for what it reads; None where its config names no end. An encoder that counts them from its padding's
    id on (RoBERTa) has so many less.
    """
    limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0)
    tables = (getattr(module, "position_embeddings", None) for module in model.modules())
    padding = next((found for found in (getattr(table, "padding_idx", None) for table in tables) if found is not None), -1)
    return limit - padding - 1 if limit else None


def beside(model: Any, virtual: int) -> int | None:
    """The positions that a model has for text beside so many virtual tokens: 2 at least; None where its config names no end."""
    limit = context(model)
    return None if limit is None else max(2, limit - virtual)


def room_for_text(model: Any, methods: Iterable[Method]) -> int:
    """Tokens of text for which a model's context has room beside the most virtual ones of any of these methods; a large number where the
    model names no end. Raises TrainingError where there is none.
    """
    virtual, limit = max((getattr(method, "n", 0) for method in methods if makes(method) is VirtualTokens), default=0), context(model)
    if limit is not None and virtual + 2 > limit:
        raise TrainingError(f"{virtual} virtual tokens leave no room for a text in a context of {limit}: take fewer (n)")
    return beside(model, virtual) or sys.maxsize


def columns_in_order(mask: Tensor | None, n: int, length: int) -> Tensor | None:
    """The order [B, n + T] of the columns [prompt, text] in which the prompt comes after each row's left padding; None without a mask."""
    if mask is None or mask.dim() != 2:
        return None
    order = torch.arange(n + length, device=mask.device)[None]
    pads = (mask.long().cumsum(1) == 0).sum(1, keepdim=True)
    return torch.where(order < pads, order + n, torch.where(order < pads + n, order - pads, order))


def in_order(columns: Tensor, order: Tensor | None) -> Tensor:
    """columns [B or 1, n + T] or [B, n + T, d], in each row's order [B, n + T] where there is one."""
    if order is None:
        return columns
    order = order.to(columns.device)
    if columns.dim() == 3:
        return columns.gather(1, order[..., None].expand(-1, -1, columns.shape[2]))
    return columns.expand(len(order), -1).gather(1, order)


def spare(model: Any, call: dict[str, Any], n: int, text: Tensor) -> None:
    """Keep a causal model's head from the n prompt positions before `text` [B, T, ...] that nobody reads.

    With labels the last of them stays, which predicts the first token. Positions are named one by one: of a slice, whose rows do not
    lie together, a CPU's product copies the head's weight for every row.
    """
    kept, labels = call.get("logits_to_keep"), call.get("labels")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters or not (kept is None or (isinstance(kept, int) and kept == 0)):
        return
    first = n if labels is None else n - 1
    call["logits_to_keep"] = torch.arange(first, n + text.shape[1], device=text.device)
    if labels is not None:
        call["labels"] = labels[:, n - 1 :]


def positions(call: dict[str, Any], text: Tensor) -> Tensor:
    """The text's own positions [B or 1, T]: those given, those of its mask, or from the cache's length on."""
    given: Tensor | None = call.get("position_ids")
    if given is not None:
        return given
    length, mask = text.shape[1], call.get("attention_mask")
    if mask is None or mask.dim() != 2:
        start = past(call)
        return torch.arange(start, start + length, device=text.device)[None]
    counted: Tensor = (mask.long().cumsum(1) - 1).clamp_min(0)
    return counted[:, -length:]


def encoded(embeddings: Any, call: dict[str, Any], text: Tensor) -> Tensor:
    """The positions [B or 1, T] that an encoder gives a text: those given, from 0 on, or (RoBERTa) counted from its padding's id."""
    given: Tensor | None = call.get("position_ids")
    if given is not None:
        return given
    padding = embeddings.position_embeddings.padding_idx
    start = 0 if padding is None else padding + 1
    if padding is None or call.get("input_ids") is None:
        return torch.arange(start, start + text.shape[1], device=text.device)[None]
    seen = (text != padding).long()
    own: Tensor = seen.cumsum(1) * seen + padding
    return own


def past(call: dict[str, Any]) -> int:
    """How many positions the call's cache holds."""
    cache = call.get("cache") if call.get("cache") is not None else call.get("past_key_values")  # renamed in transformers 5.24
    return 0 if cache is None else int(cache.get_seq_length())


def dummy(model: Any) -> int:
    """An id that stands for a virtual position: any that is not the padding's, which models look for."""
    return 1 if getattr(model.config, "pad_token_id", None) == 0 else 0
