"""What an adapter costs once it is trained, unmerged: products and context that every token pays, bytes of each adapter more.

Everything follows from the form that a method takes at each site, never from which method it is. For one token, an Affine with a branch of
rank r at a linear map in -> out is two products more and 2 r (in + out) operations; a scale or a bias is elementwise; a Replacement is the
module's own product again for the rows that want it; n virtual tokens are n positions that every attention reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graft.errors import AdapterError
from graft.forms import Affine, Form, Replacement, VirtualTokens
from graft.method import Method, select, stored
from graft.model import families
from graft.model.base import ModuleBase
from graft.site import SUBLAYERS, Site

LATENCY = {
    "merged": "none once merged",
    "elementwise": "scales or shifts, no product",
    "beside": "products beside the base's",
    "in line": "products behind the base's, which wait for it",
    "context": "a longer context",
    "own": "the trained modules' own products",
}
SCALES = ("c", "i")
"""Tensors of a form that stay float32 in a slot."""


@dataclass(frozen=True)
class Served:
    """One adapter beside the base. `latency` is a key of `LATENCY`, unmerged, and `merges` whether merging takes it away; `products` and
    `flops` are added for each token; `positions` are lost to the context; `bytes` is what one more adapter holds in a slot, in values of
    `bits` bits but for scales. `shares` says whether its rows may stand in a batch with those of others (`Adapted.route`), `serves` whether
    `graft serve` takes it: no whole modules, and a model that generates.
    """

    latency: str
    merges: bool
    products: int
    flops: int
    positions: int
    bytes: int
    bits: int = 16
    shares: bool = True
    serves: bool = True

    @property
    def words(self) -> str:
        """How it slows a forward pass, to read."""
        return LATENCY["merged"] if self.merges else LATENCY[self.latency]


def forms(model: Any, method: Method, sites: Sequence[Site]) -> list[tuple[Site, Form]]:
    """The form that a method takes at each of its sites, with tensors that have shapes and no memory. TargetError as `select` has it."""
    found: list[tuple[Site, Form]] = []
    known: dict[object, Form] = {}
    for site in select(method, sites):
        shapes = method.shapes(site)
        key = (site.role, site.adds, site.bias, site.heads, repr(shapes))
        if key not in known:
            with torch.device("meta"):
                tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
                known[key] = method.form(tensors, ModuleBase(model, site))
        found.append((site, known[key]))
    return found


def served(model: Any, method: Method, sites: Sequence[Site], bits: int = 16) -> Served:
    """What serving one adapter of a method costs on a model (without memory is enough)."""
    kept = stored(method)
    made = forms(model, kept, sites)
    kinds = {latency(site, form) for site, form in made}
    slowest = next(kind for kind in reversed(LATENCY) if kind in kinds)
    products = sum(2 for _, form in made if isinstance(form, Affine) and form.A is not None)
    positions = sum(virtual(form) for _, form in made)
    held = sum(held_by(form, kept.shapes(site), bits) for site, form in made)
    merges = not positions and not any(isinstance(form, Affine) and site.role in SUBLAYERS for site, form in made)
    alone = any(isinstance(form, VirtualTokens) and form.embeds is not None for _, form in made) and not causal(model)
    whole = any(isinstance(form, Replacement) for _, form in made)
    operations, serves = sum(flops(form) for _, form in made), causal(model) and not whole
    return Served(slowest, merges, products, operations, positions, held, bits, not alone, serves)


def causal(model: Any) -> bool:
    """Whether every attention of the model is causal: only there a prompt has keys and values of its own (graft.model.routes)."""
    return all(getattr(module, "is_causal", True) for module in families.attention_modules(model))


def latency(site: Site, form: Form) -> str:
    """What an unmerged form adds to a forward pass, a key of `LATENCY`."""
    if isinstance(form, VirtualTokens):
        return "context"
    if isinstance(form, Replacement):
        return "own"
    if form.A is None:
        return "elementwise"
    return "in line" if form.reads == "y" else "beside"


def flops(form: Form) -> int:
    """Operations added for one token, 2 for each multiplication with an addition; elementwise work is not counted."""
    if not isinstance(form, Affine) or form.A is None or form.B is None:
        return 0
    return 2 * (form.A.numel() + form.B.numel())


def virtual(form: Form) -> int:
    """Positions of the context that a form takes."""
    if not isinstance(form, VirtualTokens):
        return 0
    if form.kv is not None:
        return int(form.kv.shape[2])
    if form.embeds is None:
        raise AdapterError("virtual tokens without keys and values or embeddings")
    return len(form.embeds)


def held_by(form: Form, shapes: dict[str, tuple[int, ...]], bits: int) -> int:
    """Bytes that a form holds beside the base: in a slot, or of a Replacement its modules' tensors of these shapes."""
    if isinstance(form, Replacement):
        return sum(torch.Size(shape).numel() for shape in shapes.values()) * bits // 8
    if isinstance(form, Affine):
        return sum(value.numel() * (32 if name in SCALES else bits) // 8 for name, value in form.tensors().items())
    return sum(value.numel() * bits // 8 for value in (form.kv, form.embeds) if value is not None)
