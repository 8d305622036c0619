"""The loss at supervised positions only: the head, often the largest product of a small model, is not run anywhere else.

Where the head is frozen and plain, its logits are made and used in chunks and never held; a head that is trained, adapted or in 4 bits,
or of a model that does to its logits what is not known here, computes them itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from graft.errors import ModelError
from graft.kernels import loss, nf4
from graft.model import families

IGNORED = -100


@dataclass(frozen=True)
class Places:
    """N positions of a batch of `length` tokens a row: `rows` and `columns` [N] of the hidden states that predict `targets` [N]."""

    rows: Tensor
    columns: Tensor
    targets: Tensor
    length: int

    def to(self, device: torch.device) -> "Places":
        """The same on a device."""
        return Places(moved(self.rows, device), moved(self.columns, device), moved(self.targets, device), self.length)


def places_of(labels: Tensor) -> Places:
    """The supervised positions of labels [B, T], row by row: -100 where not trained; position t predicts t + 1."""
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return Places(rows, columns, labels[rows, columns + 1], labels.shape[1])


def token_losses(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each supervised token [N] (nats, float32 or wider) and the row it stands in [N], where the labels are.

    `batch` holds input_ids, attention_mask (or none) and labels [B, T]. Labels on the CPU beside a model on a GPU keep the host from
    waiting for it: how many are supervised is known at once.
    """
    places = places_of(batch["labels"])
    given = {name: value for name, value in batch.items() if name != "labels"}
    return losses_at(model, given, places.to(batch["input_ids"].device)), places.rows


def losses_at(model: Any, given: Mapping[str, Tensor], places: Places) -> Tensor:
    """Negative log-likelihood [N] of the targets at these places, all on the model's device; `given` are the forward's arguments."""
    known = families.logit_map(model) if is_plain(model.get_output_embeddings()) else None
    if known is not None:
        hidden = hidden_at(model, given, places)
        return loss.token_losses(hidden, model.get_output_embeddings().weight, places.targets, *known)
    logits = logits_at(model, given, places)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), places.targets, reduction="none")


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From the CPU to a GPU by way of pinned memory, which is read when its turn comes: nobody waits."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and value.device.type == "cpu" else value.to(device)


def is_plain(head: Any) -> bool:
    """Whether a head is a frozen linear map without a bias, nothing attached: its logits are a product with its weight."""
    if type(head) is not nn.Linear or head.bias is not None or hasattr(head, "graft") or "forward" in head.__dict__:
        return False
    return not head.weight.requires_grad and not nf4.is_packed(head.weight)


def logits_at(model: Any, given: Mapping[str, Tensor], places: Places) -> Tensor:
    """Logits [N, vocabulary] of a causal model at these places. The hidden states are picked before the head runs, so that memory and time
    are those of N positions. A prompt's extra positions come before the text and are never picked.
    """
    logits: Tensor = picked(model, given, places, lambda hidden: hidden).logits
    return logits


def hidden_at(model: Any, given: Mapping[str, Tensor], places: Places) -> Tensor:
    """What enters the head [N, d] at these places; the head runs at none."""
    found: list[Tensor] = []

    def none(hidden: Tensor) -> Tensor:
        found.append(hidden)
        return hidden[:0]

    picked(model, given, places, none)
    return found[0]


def picked(model: Any, given: Mapping[str, Tensor], places: Places, use: Callable[[Tensor], Tensor]) -> Any:
    """The model's output where its head sees only `use` of the hidden states [N, d] at these places."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no language-model head: load it with AutoModelForCausalLM")

    def pick(module: Any, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden = args[0]
        length = hidden.shape[1]
        where = (places.rows * length + places.columns + length - places.length).to(hidden.device)
        return (use(hidden.flatten(0, 1).index_select(0, where)),)

    handle = head.register_forward_pre_hook(pick)
    try:
        return model(**given, use_cache=False)
    finally:
        handle.remove()
