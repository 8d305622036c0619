"""`merged`: a plain transformers checkpoint in which the adapter is part of the weights: LoRA, DoRA, IA3, biases, whole modules."""

from pathlib import Path
from typing import Any

from torch import Tensor

from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.evaluate.gap import logits
from graft.export.parcel import Batch, Order, Parcel, kinds, why_no_weights
from graft.model.adapted import Adapted
from graft.model.fold import stations
from graft.model.load import load
from graft.model.merge import densified, homeless, merge
from graft.model.wiring import Wiring


def merged(order: Order, folder: Path) -> Parcel:
    """Write the checkpoint. Raises AdapterError where the adapter cannot become part of the weights."""
    model = densified(merged_into(order, "merged").model)
    model.save_pretrained(folder)
    order.base.tokenizer.save_pretrained(folder)
    promise = "W' = (diag(c) W + B A) diag(i) in float64, rounded once to the checkpoint's dtype"
    return Parcel(promise, "transformers", model.dtype, runner(folder, model.dtype), {"dtype": str(model.dtype).removeprefix("torch.")})


def merged_into(order: Order, target: str, adapter: Adapter | None = None) -> Adapted:
    """The adapter merged into the base. Raises AdapterError with the way out where it cannot be, or a reload would lose something."""
    model, adapter = order.base.model, adapter or order.only
    if reason := why_no_weights(adapter, stations(model, adapter)):
        raise AdapterError(f"{kinds(adapter)} cannot be exported as {target}: {reason}")
    adapted = Adapted(Wiring(model), adapter)
    merge(adapted)
    check_homes(adapted)
    return adapted


def check_homes(adapted: Adapted) -> None:
    """Raise AdapterError if a checkpoint would lose a merged bias."""
    if lost := homeless(adapted):
        raise AdapterError(
            f"{type(adapted.model).__name__} has no place for the biases of {len(lost)} modules (first {lost[0]}): a checkpoint would lose "
            "them. Serve the adapter unmerged, or train it without added biases"
        )


def runner(folder: Path, dtype: Any) -> Any:
    """Runs rows through the checkpoint as transformers loads it back."""
    again = None

    def run(number: int, batch: Batch) -> Tensor:
        nonlocal again
        again = again or load(str(folder), dtype=dtype)
        return logits(again.model, batch)

    return run
