"""The gradient of one batch: its losses and their backward pass, as they come or recorded (graft.model.recorded).

    the gradient of Σ_n w l_n is added to the parameters'; w is one over the supervised tokens of the whole optimizer step

What the work reads, all on the model's device: the forward's arguments, `places` [3, M] (row, column and target of each supervised token)
and `weights` [M]. A recording has one M for a range of numbers: the places beyond are the first one again, with a weight of 0.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graft.model.supervised import Places, losses_at, moved, places_of

SHARES = 8  # parts of a batch's positions: as many numbers M at most for one shape of batch


def gradient(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Losses [M], their gradients added to the parameters'."""
    given = {name: value for name, value in inputs.items() if name not in ("places", "weights")}
    rows, columns, targets = inputs["places"]
    losses = losses_at(model, given, Places(rows, columns, targets, inputs["input_ids"].shape[1]))
    (losses * inputs["weights"]).sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach()


def inputs_of(batch: Mapping[str, Tensor], weight: float, dtype: torch.dtype, *, padded: bool) -> tuple[dict[str, Tensor], Tensor]:
    """What `gradient` reads of a batch whose labels are on the CPU, and the rows [N] that its first N losses stand in, on the CPU."""
    found, device = places_of(batch["labels"]), batch["input_ids"].device
    places = torch.stack([found.rows, found.columns, found.targets])
    count = places.shape[1]
    total = wide(count, batch["labels"].numel()) if padded and count else count
    places = torch.cat([places, places[:, :1].expand(-1, total - count)], 1)
    weights = (torch.arange(total) < count).to(torch.promote_types(dtype, torch.float32)) * weight
    given = {name: value for name, value in batch.items() if name != "labels"}
    return given | {"places": moved(places, device), "weights": moved(weights, device)}, found.rows


def wide(count: int, positions: int) -> int:
    """The M for so many of a batch's positions: the next of SHARES."""
    share = max(1, -(-positions // SHARES))
    return min(-(-count // share) * share, positions)
