"""Parcel: what an export has made, and how the thing it made is run to be measured."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graft.adapter import Adapter
from graft.forms import Affine
from graft.model.fold import Here
from graft.model.load import Loaded
from graft.site import Site

Batch = dict[str, Tensor]
NO_PREFIX = (
    "a prefix is keys and values of every layer, which no checkpoint and no LoRA can hold: serve it with Graft, or train a prompt, which "
    "`--to vocabulary` exports exactly"
)
NO_ACTIVATION = (
    "a bottleneck is no linear map, and no serving engine runs one: serve it with Graft, or train a LoRA of the same size in its place"
)


@dataclass(frozen=True)
class Parcel:
    """`runs`: the logits of a row from what was written, loaded back and computed in `dtype`; `facts` go into the export's own file."""

    promise: str
    loaded_by: str
    dtype: torch.dtype
    runs: Callable[[int, Batch], Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """What is to be exported: adapters by name, on one base. Each target's function takes one, and a folder to write to."""

    base: Loaded
    adapters: dict[str, Adapter]

    @property
    def only(self) -> Adapter:
        """The adapter, of which there is one."""
        (adapter,) = self.adapters.values()
        return adapter


def parts_of(found: dict[str, Here]) -> list[tuple[Site, Any]]:
    """The forms of an adapter, by site."""
    return [(station.site, station.method.form(own, station.base)) for here in found.values() for station, own in here]


def why_no_weights(adapter: Adapter, found: dict[str, Here]) -> str:
    """Why an adapter cannot be exported as weights, and what to do instead; "" if it can."""
    for _, form in parts_of(found):
        if getattr(form, "kv", None) is not None:
            return NO_PREFIX
        if getattr(form, "embeds", None) is not None:
            return "a prompt is positions before the text, not weights: export it with `--to vocabulary`"
        if isinstance(form, Affine) and form.A is not None and (form.act != "identity" or form.reads != "x" or form.adds != "y"):
            return NO_ACTIVATION
    return ""


def kinds(adapter: Adapter) -> str:
    """The adapter's methods, for a sentence."""
    return " + ".join(method.kind for method, _ in adapter.parts)


def is_virtual(form: Any) -> bool:
    """Whether a form is virtual tokens."""
    return getattr(form, "kv", None) is not None or getattr(form, "embeds", None) is not None
