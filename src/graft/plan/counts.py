"""Exact counts of every method on a model, from its config: the model is built without memory and nothing is loaded.

A count is the sum of the sizes of the tensors that the method's own `shapes` names, the same that training allocates and a file
holds; adapter bytes are of values in float32, without the few bytes of a file's header.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from graft import adapter as adapters
from graft.errors import TargetError
from graft.forms import Affine, VirtualTokens
from graft.method import Method, makes, select
from graft.model import families
from graft.model.skeleton import skeleton
from graft.site import SUBLAYERS

BYTES = 4  # a float32 value


@dataclass(frozen=True)
class Counted:
    """One method on one model: trained and stored values, the base's parameters, context positions; or why it has no place."""

    name: str
    setting: str
    trained: int = 0
    stored: int = 0
    base: int = 0
    positions: int = 0
    merges: bool = False
    refused: str = ""

    @property
    def share(self) -> float:
        """Trained values over the base's parameters."""
        return self.trained / self.base


def counts(config: Any, methods: Mapping[str, Method]) -> list[Counted]:
    """Each method on the model that a transformers config describes. A method without a place in it says why."""
    model = skeleton(config)
    sites = families.sites(model)
    base = sum(value.numel() for value in model.parameters())
    found = []
    for name, method in methods.items():
        setting = ", ".join(f"{field}={show(getattr(method, field))}" for field in method.__dataclass_fields__)  # type: ignore[attr-defined]
        try:
            trained = adapters.count([method], sites)
        except TargetError as error:
            found.append(Counted(name, setting, base=base, refused=str(error)))
            continue
        kept = adapters.count([method], sites, as_stored=True)
        positions = int(getattr(method, "n", 0)) if makes(method) is VirtualTokens else 0
        sublayers = any(site.role in SUBLAYERS for site in select(method, sites))
        merges = not positions and not (makes(method) is Affine and sublayers)
        found.append(Counted(name, setting, trained, kept, base, positions, merges))
    return found


def show(value: object) -> str:
    """A field's value, short."""
    text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return (text or "default") if len(text) <= 24 else text[:21] + "..."


def table(name: str, found: list[Counted]) -> Table:
    """The counts as a table for the terminal."""
    base = found[0].base if found else 0
    made = Table(title=f"{name}: {base:,} parameters", title_justify="left")
    for column, side in {
        "method": "left",
        "trained": "right",
        "of base": "right",
        "adapter": "right",
        "context": "right",
        "merges": "left",
    }.items():
        made.add_column(column, justify="right" if side == "right" else "left")
    for one in found:
        if one.refused:
            made.add_row(one.name, "-", "-", "-", "-", f"no: {one.refused}")
            continue
        size = f"{one.stored * BYTES / 1e6:,.2f} MB"
        made.add_row(one.name, f"{one.trained:,}", f"{one.share:.3%}", size, str(one.positions), "yes" if one.merges else "no")
    return made
