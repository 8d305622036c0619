"""Exact counts of every method on a model, from its config: the model is built without memory and nothing is loaded.

A count is the sum of the sizes of the tensors that the method's own `shapes` names, the same that training allocates and a file
holds; adapter bytes are of values in float32, without the few bytes of a file's header.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft import adapter as adapters
from graft.errors import TargetError, TrainingError
from graft.method import Method
from graft.model import families
from graft.model.positions import room_for_text
from graft.model.skeleton import skeleton
from graft.model.virtual_tokens import closed
from graft.plan.serving import Served, served
from graft.site import Site

BYTES = 4  # a float32 value


@dataclass(frozen=True)
class Counted:
    """One method on one model: trained and stored values, the base's parameters, what serving costs; or why it has no place.

    `room` are the tokens of text that the model's context has room for beside the method's virtual ones.
    """

    name: str
    setting: str
    trained: int = 0
    stored: int = 0
    base: int = 0
    served: Served | None = None
    refused: str = ""
    room: int = sys.maxsize

    @property
    def share(self) -> float:
        """Trained values over the base's parameters."""
        return self.trained / self.base

    @property
    def positions(self) -> int:
        """Positions of the context that it takes."""
        return self.served.positions if self.served else 0

    @property
    def merges(self) -> bool:
        """Whether it can become part of the base's weights."""
        return self.served is not None and self.served.merges


def counts(config: Any, methods: Mapping[str, Method]) -> list[Counted]:
    """Each method on the model that a transformers config describes. A method without a place in it says why."""
    model = skeleton(config)
    return counted(model, families.sites(model), methods)


def counted(model: Any, sites: Sequence[Site], methods: Mapping[str, Method]) -> list[Counted]:
    """The same on a model without memory, and its sites."""
    base = sum(value.numel() for value in model.parameters())
    found = []
    for name, method in methods.items():
        setting = ", ".join(f"{field}={show(getattr(method, field))}" for field in method.__dataclass_fields__)  # type: ignore[attr-defined]
        try:
            trained = adapters.count([method], sites)
            kept = adapters.count([method], sites, as_stored=True)
            cost = served(model, method, sites)
            room = room_for_text(model, [method])
        except (TargetError, TrainingError) as error:
            found.append(Counted(name, setting, base=base, refused=str(error)))
            continue
        refused = closed(model) if cost.positions else ""
        entry = Counted(name, setting, trained, kept, base, cost, room=room)
        found.append(Counted(name, setting, base=base, refused=refused) if refused else entry)
    return found


def show(value: object) -> str:
    """A field's value, short."""
    text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return (text or "default") if len(text) <= 24 else text[:21] + "..."


def size(number: float) -> str:
    """Bytes, to read: kB, MB or GB, of a thousand, a million or a billion."""
    unit, scale = next((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if number >= scale or unit == "kB")
    return f"{number / scale:,.1f} {unit}"
