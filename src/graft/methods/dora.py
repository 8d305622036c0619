"""DoRA: y = m (W + s B A) x / ‖W + s B A‖ per output row, the norm detached. Liu et al. 2024, arXiv:2402.09353.

Shapes: A [r, in], B [out, r], magnitude [out]. The norm is the base's `row_norms`, never taken of a dense sum; the magnitude starts from
the same bits, so that a fresh adapter's c = m / norm is exactly 1. The base's bias b0 is not scaled: c*(Wx + b0 + s B A x) + (1-c)*b0.
At an embedding W is [d, vocabulary], so that a row's norm is over the vocabulary, as HF PEFT has it.
With dropout the branch alone is dropped: c*(Wx + s B A drop(x)), which needs no second product with W.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from graft.forms import Affine
from graft.method import Base, Shapes, Tensors, matches
from graft.methods.lora import LoRA, check_rank, low_rank, scale
from graft.site import LINEAR, Site


@dataclass(frozen=True)
class DoRA:
    """Weight-decomposed low-rank updates of linear maps and embeddings."""

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0
    rslora: bool = False
    init_A: str = "kaiming"
    kind: ClassVar[str] = "dora"

    def __post_init__(self) -> None:
        check_rank(self.r, self.dropout, self.init_A)

    def at(self, site: Site) -> bool:
        """At every linear map or embedding that a target names."""
        return site.role in (*LINEAR, "head", "embedding", "other") and any(matches(site, target) for target in self.targets)

    def shapes(self, site: Site) -> Shapes:
        """LoRA's, and the magnitude [out]."""
        return {"A": (self.r, site.inputs), "B": (site.outputs, self.r), "magnitude": (site.outputs,)}

    def init(self, site: Site, base: Base, rng: torch.Generator) -> Tensors:
        """LoRA's, and the norms of W's rows."""
        return low_rank(self.as_lora(), site, rng) | {"magnitude": base.row_norms_sq.sqrt()}

    def form(self, tensors: Tensors, base: Base) -> Affine:
        """c = m / norm, A, s B (with the gain of a module that scales its product), and b = (1 - c) b0; c scales the sum."""
        A, B = tensors["A"], tensors["B"] * scale(self.as_lora())
        c = tensors["magnitude"] / base.row_norms(A, B)
        b = None if base.bias is None else (1 - c) * base.bias.to(c.dtype)
        return Affine(c=c, A=A, B=B if base.gain == 1 else B * base.gain, b=b, dropout=self.dropout, scales="sum")

    def as_lora(self) -> LoRA:
        """The low-rank part's config."""
        return LoRA(self.r, self.alpha, self.targets, self.dropout, self.rslora, self.init_A)
