"""Linear maps that share an input, each with a low-rank branch; the layout that suits where the weights are."""

from collections.abc import Sequence

from torch import Tensor

from graft.kernels.affine.pitched import Pitched
from graft.kernels.affine.reference import Branch
from graft.kernels.affine.stacked import Stacked

__all__ = ["LAYOUTS", "Branch", "Pitched", "Stacked", "laid_out"]

LAYOUTS: dict[str, type[Pitched] | type[Stacked]] = {"pitched": Pitched, "stacked": Stacked}


def laid_out(weights: Sequence[Tensor], ranks: Sequence[int], layout: str = "auto") -> Pitched | Stacked:
    """The maps W_j [out_j, in] with room for branches of ranks r_j: pitched on CUDA, stacked elsewhere, or as asked."""
    return LAYOUTS["pitched" if weights[0].is_cuda else "stacked"](weights, ranks) if layout == "auto" else LAYOUTS[layout](weights, ranks)
