"""Bottleneck adapters: y + s up(act(down(·))). Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247;
the parallel form: He et al. 2021, arXiv:2110.04366.

Shapes at a sublayer of width d: A [size, d] and a [size] (down), B [d, size] and b [d] (up). A sequential adapter reads the
sublayer's output before it is added to the residual, a parallel one the sublayer's input. At a `block` (the whole layer, z its output)
it is z + s up(act(down z)), and LN(h + s up(act(down z))) with z = LN(h) where the layer ends with a norm. The up-projection starts at 0.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from graft.errors import TargetError
from graft.forms import ACTIVATIONS, Affine
from graft.method import Base, Shapes, Tensors, matches
from graft.site import SUBLAYERS, Site

PLACES = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",), "parallel": ("mlp",)}


@dataclass(frozen=True)
class Bottleneck:
    """A two-layer MLP beside or behind a sublayer. `placement`: houlsby (after attention and MLP), pfeiffer (after the MLP), parallel
    (beside the MLP); `targets` overrides the sublayers: attention, mlp, block, or (parallel only)
    residual, the MLP reading what enters its norm.
    """

    size: int = 64
    act: str = "relu"
    placement: str = "houlsby"
    scale: float = 1.0
    targets: tuple[str, ...] = ()
    kind: ClassVar[str] = "bottleneck"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise TargetError(f"size = {self.size}: the bottleneck must be at least 1 wide")
        if self.act not in ACTIVATIONS:
            raise TargetError(f"act = {self.act!r}: choose one of {', '.join(ACTIVATIONS)}")
        if self.placement not in PLACES:
            raise TargetError(f"placement = {self.placement!r}: choose one of {', '.join(PLACES)}")

    def at(self, site: Site) -> bool:
        """At the sublayers of the placement, or those targeted."""
        if site.role not in SUBLAYERS or (site.adds == "x" if self.placement == "parallel" else site.role == "residual"):
            return False
        return any(matches(site, place) for place in self.targets or PLACES[self.placement])

    def shapes(self, site: Site) -> Shapes:
        """A [size, d], a [size], B [d, size], b [d]."""
        width = site.inputs if self.placement == "parallel" else site.outputs
        return {"A": (self.size, width), "a": (self.size,), "B": (site.outputs, self.size), "b": (site.outputs,)}

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """A uniform as a linear layer starts, all else 0."""
        tensors = {name: torch.zeros(shape) for name, shape in self.shapes(site).items()}
        bound = 1 / math.sqrt(tensors["A"].shape[1])
        tensors["A"].uniform_(-bound, bound, generator=rng)
        return tensors

    def form(self, tensors: Tensors, base: Base) -> Affine:
        """The scale is folded into B and b."""
        B, b = (tensors["B"], tensors["b"]) if self.scale == 1.0 else (tensors["B"] * self.scale, tensors["b"] * self.scale)
        reads = "x" if self.placement == "parallel" else "y"
        return Affine(A=tensors["A"], a=tensors["a"], B=B, b=b, act=self.act, reads=reads, adds=base.site.adds)
