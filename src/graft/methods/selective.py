"""Training some of the base's own parameters.

`BiasOnly` (BitFit, Ben Zaken et al. 2021, arXiv:2106.10199): a delta b [out] to each bias; `add=True` gives one to linear maps that
have none, as in Llama. `Selective` trains whole modules, in their own layout: the last k layers, the norms, the head, or all. Both
take `targets`, which name the modules instead.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from graft.errors import TargetError
from graft.forms import Affine, Replacement
from graft.method import Base, Shapes, Tensors, matches
from graft.site import LINEAR, Site


@dataclass(frozen=True)
class BiasOnly:
    """Biases of the layers' linear maps and norms, or of the targets; `add` where a linear map has none."""

    add: bool = False
    targets: tuple[str, ...] = ()
    kind: ClassVar[str] = "bias"
    hint: ClassVar[str] = ": it has no biases; BiasOnly(add=True) adds them to its linear maps"

    def at(self, site: Site) -> bool:
        """Where there is a bias, or where one may be added."""
        named = any(matches(site, target) for target in self.targets) if self.targets else site.role in (*LINEAR, "norm")
        return site.primary and named and (site.bias or (self.add and site.role in (*LINEAR, "head")))

    def shapes(self, site: Site) -> Shapes:
        """b [out]."""
        return {"b": (site.outputs,)}

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """Zero: the delta to the bias that is there."""
        return {"b": torch.zeros(site.outputs)}

    def form(self, tensors: Tensors, base: Base) -> Affine:
        """b."""
        return Affine(b=tensors["b"])


@dataclass(frozen=True)
class Selective:
    """Whole modules: `train` is `last` (the last `k` layers), `norm`, `head` or `full` (a tied head stays tied); `targets` override it."""

    train: str = "last"
    k: int = 2
    targets: tuple[str, ...] = ()
    kind: ClassVar[str] = "selective"

    def __post_init__(self) -> None:
        if self.train not in ("last", "norm", "head", "full"):
            raise TargetError(f"train = {self.train!r}: choose 'last', 'norm', 'head' or 'full'")
        if self.train == "last" and self.k < 1:
            raise TargetError(f"k = {self.k}: at least one layer must be trained")

    def at(self, site: Site) -> bool:
        """At every module with parameters that the choice, or a target, names."""
        if not site.primary or not site.parameters:
            return False
        if self.targets:
            return any(matches(site, target) for target in self.targets)
        if self.train == "last":
            return site.layer is not None and site.layer >= site.layers - self.k
        return not site.tied if self.train == "full" else site.role == self.train

    def shapes(self, site: Site) -> Shapes:
        """The module's own."""
        return dict(site.parameters)

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """The module's own values."""
        return base.parameters()

    def form(self, tensors: Tensors, base: Base) -> Replacement:
        """The twin's parameters."""
        return Replacement(tensors)
