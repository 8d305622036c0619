"""The verb: write a target, load it back, measure it against the adapted model on real rows, and say both in `graft_export.json`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from graft.errors import AdapterError
from graft.evaluate.gap import Gap, bound_of, gap_of, logits
from graft.export.lora import peft_lora
from graft.export.merged import merged
from graft.export.parcel import Batch, Order, Parcel
from graft.export.place import new_dir
from graft.export.shards import shards
from graft.export.vocabulary import vocabulary
from graft.model.adapted import Adapted
from graft.model.combine import read
from graft.model.load import Loaded
from graft.model.wiring import Wiring

TARGETS: dict[str, Callable[[Order, Path], Parcel]] = {
    "peft-lora": peft_lora,
    "merged": merged,
    "vocabulary": vocabulary,
    "shards": shards,
}
FILE = "graft_export.json"


@dataclass(frozen=True)
class Report:
    """What an export promises and what was measured."""

    target: str
    promise: str
    gap: Gap
    facts: dict[str, Any]


def export(
    base: Loaded, adapters: Sequence[str | Path], target: str, batches: Sequence[Batch], folder: str | Path, *, max_gap: float | None = None
) -> Report:
    """Export adapters (their folders; more than one only as `vocabulary`) of a base to a new folder, and measure it on rows.

    Each batch is one row. `base.model` is consumed: it may be merged or extended afterwards. Raises AdapterError, leaving no folder, where
    the target cannot hold the adapter, or its largest logit gap is over `max_gap` (what rounding explains when None).
    """
    if target not in TARGETS:
        raise AdapterError(f"there is no export target {target!r}: choose from {', '.join(TARGETS)}")
    if not batches or Path(folder).exists():
        raise AdapterError(f"{folder} exists: name a new folder" if batches else "an export is measured on rows, and there are none")
    names = [Path(one).resolve().name for one in adapters]
    if len(set(names)) < len(names) or (len(names) != 1 and target != "vocabulary"):
        raise AdapterError(f"{target} takes one adapter; only vocabulary takes several, whose folders have different names")
    order = Order(base, {name: read(base.model, Path(one)) for name, one in zip(names, adapters, strict=True)})
    before = [adapted_logits(order, name, batches) for name in names]
    with new_dir(Path(folder)) as stage:
        parcel = TARGETS[target](order, stage)
        after = [[parcel.runs(number, batch) for batch in batches] for number in range(len(names))]
        gap = gap_of([row for rows in before for row in rows], [row for rows in after for row in rows])
        bound = bound_of(parcel.dtype, gap) if max_gap is None else max_gap
        if not gap.largest <= bound:
            raise AdapterError(f"{gap}: over the bound {bound:.3g}, nothing was saved (--max-gap sets the bound)")
        report = Report(target, parcel.promise, gap, parcel.facts)
        (stage / FILE).write_text(json.dumps(said(report, parcel, order, bound), indent=1) + "\n")
    return report


def adapted_logits(order: Order, name: str, batches: Sequence[Batch]) -> list[Tensor]:
    """The logits of the rows under one adapter, run unmerged."""
    adapted = Adapted(Wiring(order.base.model), order.adapters[name])
    found = [logits(order.base.model, batch) for batch in batches]
    adapted.detach()
    return found


def said(report: Report, parcel: Parcel, order: Order, bound: float) -> dict[str, Any]:
    """The contents of the export's own file."""
    return {
        "target": report.target,
        "adapters": {name: [method.kind for method, _ in adapter.parts] for name, adapter in order.adapters.items()},
        "base": {"name": order.base.name, "note": order.base.note},
        "promises": report.promise,
        "measured": asdict(report.gap) | {"bound": bound, "loaded_by": parcel.loaded_by},
        "facts": report.facts,
        "graft": version("graft-peft"),
    }
