"""Linear maps that share an input, each with a low-rank branch; the layout that suits where the weights are."""

from collections.abc import Sequence
from typing import Any

from graft.kernels import nf4
from graft.kernels.affine.packed import Packed
from graft.kernels.affine.pitched import Pitched
from graft.kernels.affine.reference import Branch
from graft.kernels.affine.stacked import Stacked

__all__ = ["LAYOUTS", "Branch", "Packed", "Pitched", "Stacked", "laid_out", "resolved"]

LAYOUTS: dict[str, type[Pitched] | type[Stacked]] = {"pitched": Pitched, "stacked": Stacked}


def laid_out(weights: Sequence[Any], ranks: Sequence[int], layout: str = "auto") -> Pitched | Stacked:
    """The maps W_j [out_j, in] with room for branches of ranks r_j: pitched on CUDA, stacked elsewhere, or as asked.

    Weights in 4 bits, all of one kind, are pitched when they are needed; there is no stacking those.
    """
    if nf4.is_packed(weights[0]):
        return Packed(weights, ranks)
    return LAYOUTS[resolved(weights[0], layout)]([weight.detach() for weight in weights], ranks)


def resolved(weight: Any, layout: str) -> str:
    """The layout's name, of "auto" the one that suits where the weight is."""
    return layout if layout != "auto" else "pitched" if weight.is_cuda else "stacked"
