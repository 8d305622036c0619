"""The loss at supervised positions only: the head, often the largest product of a small model, is not run anywhere else.

Where the head is frozen and plain, its logits are made and used in chunks and never held; a head that is trained, adapted or in 4 bits,
or of a model that does to its logits what is not known here, computes them itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from graft.errors import ModelError
from graft.kernels import loss, nf4
from graft.model import families

IGNORED = -100


def token_losses(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each supervised token [N] (nats, float32 or wider) and the row it stands in [N], where the labels are.

    `batch` holds input_ids, attention_mask (or none) and labels [B, T], labels -100 where not trained; position t predicts t + 1. Labels on
    the CPU beside a model on a GPU keep the host from waiting for it: how many are supervised is known at once.
    """
    labels = batch["labels"]
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    rows, columns = mask.nonzero(as_tuple=True)
    targets = moved(labels[rows, columns + 1], batch["input_ids"].device)
    known = families.logit_map(model) if is_plain(model.get_output_embeddings()) else None
    if known is None:
        logits = logits_at(model, batch, mask)
        losses = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
    else:
        hidden = hidden_at(model, batch, mask)
        losses = loss.token_losses(hidden, model.get_output_embeddings().weight, targets, *known)
    return losses, rows


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From the CPU to a GPU by way of pinned memory, which is read when its turn comes: nobody waits."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and value.device.type == "cpu" else value.to(device)


def is_plain(head: Any) -> bool:
    """Whether a head is a frozen linear map without a bias, nothing attached: its logits are a product with its weight."""
    if type(head) is not nn.Linear or head.bias is not None or hasattr(head, "graft") or "forward" in head.__dict__:
        return False
    return not head.weight.requires_grad and not nf4.is_packed(head.weight)


def logits_at(model: Any, batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Logits [N, vocabulary] at the N positions where `mask` [B, T] is true, in row order, of a causal model.

    `batch` holds the forward's arguments (labels, if any, are left out). The hidden states are picked before the head runs, so that
    memory and time are those of N positions. A prompt's extra positions come before the text and are never picked.
    """
    logits: Tensor = picked(model, batch, mask, lambda hidden: hidden).logits
    return logits


def hidden_at(model: Any, batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """What enters the head [N, d] at the N positions where `mask` [B, T] is true, in row order; the head runs at none."""
    found: list[Tensor] = []

    def none(hidden: Tensor) -> Tensor:
        found.append(hidden)
        return hidden[:0]

    picked(model, batch, mask, none)
    return found[0]


def picked(model: Any, batch: Mapping[str, Tensor], mask: Tensor, use: Callable[[Tensor], Tensor]) -> Any:
    """The model's output where its head sees only `use` of the hidden states [N, d] at the positions of `mask` [B, T]."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no language-model head: load it with AutoModelForCausalLM")

    device = batch["input_ids"].device
    rows, columns = (moved(place, device) for place in mask.nonzero(as_tuple=True))

    def pick(module: Any, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden = args[0]
        length = hidden.shape[1]
        places = (rows * length + columns + length - mask.shape[1]).to(hidden.device)
        return (use(hidden.flatten(0, 1).index_select(0, places)),)

    handle = head.register_forward_pre_hook(pick)
    try:
        return model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False)
    finally:
        handle.remove()
