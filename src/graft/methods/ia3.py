"""IA3: learned scales of keys, values and the MLP's inner activation. Liu et al. 2022, arXiv:2205.05638.

Shapes: c [out] where an output is scaled, i [in] where an input is. The inner activation is act(gate x) * (up x) in a gated MLP, so
scaling it is scaling the output of `up`; in a plain MLP it is the input of `down`. All start at 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from graft.forms import Affine
from graft.method import Base, Shapes, Tensors, matches
from graft.site import Site


@dataclass(frozen=True)
class IA3:
    """Scales of activations. Empty `targets` means the paper's three places; those in `feedforward` scale their input."""

    targets: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    kind: ClassVar[str] = "ia3"

    def at(self, site: Site) -> bool:
        """At the targets, or at key, value and the MLP's inner activation."""
        if self.targets:
            return any(matches(site, target) for target in self.targets)
        return site.role in ("key", "value") or site.role == ("up" if site.gated else "down")

    def shapes(self, site: Site) -> Shapes:
        """c [out], or i [in]."""
        return {"i": (site.inputs,)} if self.scales_input(site) else {"c": (site.outputs,)}

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """Ones."""
        return {name: torch.ones(shape) for name, shape in self.shapes(site).items()}

    def form(self, tensors: Tensors, base: Base) -> Affine:
        """c or i as they are."""
        return Affine(c=tensors.get("c"), i=tensors.get("i"))

    def scales_input(self, site: Site) -> bool:
        """Whether this site's scale is of its input."""
        if self.targets:
            return any(matches(site, target) for target in self.feedforward)
        return site.role == "down"
