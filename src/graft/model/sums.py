"""Weighted sums of adapters' changes, each kept in the form that it can have: pairs of A and B, or dense changes of parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graft.forms import Affine, at_rows
from graft.method import Tensors
from graft.model.base import dense
from graft.model.fold import Here, fold, followers, tied_to, wide
from graft.site import Site


@dataclass
class Sum:
    """`low`: A [R, in] and B [out, R] by site; `changes`: what is added to each parameter of a module, in its own layout; `heavy`: the
    modules whose matrix changes densely. All in float64.
    """

    low: dict[Site, tuple[Tensor, Tensor]] = field(default_factory=dict)
    changes: dict[str, Tensors] = field(default_factory=dict)
    heavy: set[str] = field(default_factory=set)

    def add(self, path: str, name: str, value: Tensor) -> None:
        """Add to the change of one parameter."""
        own = self.changes.setdefault(path, {})
        own[name] = own[name] + value if name in own else value

    def widen(self, site: Site, A: Tensor, B: Tensor) -> None:
        """Put a pair beside those that a site has."""
        if site in self.low:
            A, B = torch.cat([self.low[site][0], A]), torch.cat([self.low[site][1], B], dim=1)
        self.low[site] = A, B


def weighted(model: Any, found: Sequence[dict[str, Here]], weights: Sequence[float]) -> Sum:
    """Σ w_k (W'_k − W) of adapters that all can be merged."""
    total = Sum()
    total.heavy = {path for here in found for path, stationed in here.items() if not all(is_low(form) for _, form in forms(stationed))}
    total.heavy |= {name for path in total.heavy for name in tied_to(model, path)}
    for here, weight in zip(found, weights, strict=True):
        for path, stationed in here.items():
            for site, form in [] if path in total.heavy else forms(stationed):
                add_low(total, model, site, form, weight)
        for path, change in changes(model, here, total.heavy).items():
            for name, value in change.items():
                total.add(path, name, weight * value)
    return total


def forms(here: Here) -> list[tuple[Site, Any]]:
    """A module's forms, by site."""
    return [(station.site, station.method.form(tensors, station.base)) for station, tensors in here]


def is_low(form: Any) -> bool:
    """Whether a form adds a low-rank product, a bias or both, and does nothing else."""
    return isinstance(form, Affine) and form.c is None and form.i is None


def add_low(total: Sum, model: Any, site: Site, form: Affine, weight: float) -> None:
    """Add w (B A) to a site, and w (B a + b) to the module's bias."""
    module = model.get_submodule(site.path)
    kind = wide(next(iter(form.tensors().values())))
    gain = float(getattr(module, "embed_scale", 1.0))
    if form.A is not None and form.B is not None:
        total.widen(site, form.A.to(kind), form.B.to(kind) * (weight / gain))
    bias = None if form.b is None else form.b.to(kind)
    if form.a is not None and form.B is not None:
        branch = form.B.to(kind) @ form.a.to(kind)
        bias = branch if bias is None else bias + branch
    if bias is not None:
        outputs = getattr(module, "out_features", getattr(module, "nf", len(bias)))
        placed = bias if site.rows is None else at_rows(Affine(b=bias), site.rows, outputs).b
        total.add(site.path, "bias", weight * (bias if placed is None else placed))


def changes(model: Any, here: dict[str, Here], heavy: set[str]) -> dict[str, Tensors]:
    """What one adapter adds to the parameters of the modules that change densely, and of those that follow them."""
    found = {path: stationed for path, stationed in here.items() if path in heavy}
    made = dict(fold(model, found, lambda module: wide(next(module.parameters())), as_run=False))
    made |= {name: {"weight": made[owner]["weight"]} for name, owner in followers(model, found).items() if name not in made}
    delta: dict[str, Tensors] = {}
    for path, values in made.items():
        own = {name: dense(value) for name, value in model.get_submodule(path).named_parameters(recurse=False)}
        delta[path] = {name: value - own[name].to(value.dtype) if name in own else value for name, value in values.items()}
    return delta
