"""LoRA: y + s B A x, with s = alpha/r, or alpha/sqrt(r) for rsLoRA. Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732.

Shapes at a linear map: A [r, in], B [out, r], and b [out] with `bias`: y + s (B A x + b). A is random, B and b are 0, so that a
fresh adapter changes nothing. At an embedding A [r, vocabulary] is 0 and B is random, as HF PEFT has it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from graft.errors import TargetError
from graft.forms import Affine
from graft.method import Base, Shapes, Tensors, matches
from graft.site import LINEAR, Site


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of linear maps. `init` of A: `kaiming` (uniform, as a linear layer starts) or `gaussian` (N(0, 1/r^2))."""

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0
    rslora: bool = False
    init_A: str = "kaiming"
    bias: bool = False
    kind: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        check_rank(self.r, self.dropout, self.init_A)

    def at(self, site: Site) -> bool:
        """At every linear map or embedding that a target names."""
        return site.role in (*LINEAR, "head", "embedding", "other") and any(matches(site, target) for target in self.targets)

    def shapes(self, site: Site) -> Shapes:
        """A [r, in], B [out, r], and b [out] with `bias`. Raises TargetError at an embedding with `bias`, which has no place for one."""
        if self.bias and site.role == "embedding":
            raise TargetError(f"bias=True at {site.path}: an embedding has no bias; target it by a LoRA without")
        return {"A": (self.r, site.inputs), "B": (site.outputs, self.r)} | ({"b": (site.outputs,)} if self.bias else {})

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """A random, B and b zero; at an embedding A zero and B random."""
        return low_rank(self, site, rng) | ({"b": torch.zeros(site.outputs)} if self.bias else {})

    def form(self, tensors: Tensors, base: Base) -> Affine:
        """A, sB and sb, with the gain of a module that scales its product."""
        b = tensors["b"] * scale(self) if self.bias else None
        return Affine(A=tensors["A"], B=tensors["B"] * (scale(self) * base.gain), b=b, dropout=self.dropout)


def check_rank(r: int, dropout: float, init_A: str) -> None:
    """Raise TargetError for a config of a low-rank method that has no meaning."""
    if r < 1:
        raise TargetError(f"r = {r}: the rank must be at least 1")
    if not 0 <= dropout < 1:
        raise TargetError(f"dropout = {dropout}: it must be at least 0 and below 1")
    if init_A not in ("kaiming", "gaussian"):
        raise TargetError(f"init_A = {init_A!r}: choose 'kaiming' or 'gaussian'")


def scale(method: "LoRA") -> float:
    """s = alpha/r, or alpha/sqrt(r)."""
    return method.alpha / (math.sqrt(method.r) if method.rslora else method.r)


def low_rank(method: "LoRA", site: Site, rng: torch.Generator) -> Tensors:
    """Fresh A [r, in] and B [out, r] of which one is zero."""
    A, B = (torch.zeros(shape) for shape in ((method.r, site.inputs), (site.outputs, method.r)))
    if site.role == "embedding":
        B.normal_(generator=rng)
    elif method.init_A == "gaussian":
        A.normal_(std=1 / method.r, generator=rng)
    else:
        bound = 1 / math.sqrt(site.inputs)
        A.uniform_(-bound, bound, generator=rng)
    return {"A": A, "B": B}
