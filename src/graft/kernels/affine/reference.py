"""Linear maps that share an input, each with a low-rank branch: the plain torch version, to which the fast ones are held.

    y_j = x W_j^T + b_j + (drop(x) A_j^T) B_j^T

x [..., in], W_j [out_j, in], b_j [out_j] or None, A_j [r_j, in], B_j [out_j, r_j], y_j [..., out_j]. W_j and b_j are frozen. A and B come
in master precision and are cast once to x's dtype; all of the branches of one group drop the same values of x.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from graft.kernels.affine.skinny import drop

Pairs = Sequence[tuple[Tensor, Tensor]]
"""(A, B) of each linear map."""


def linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    pairs: Pairs,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """Every y_j. `seed` (an int64 scalar) decides what `dropout` drops, as in the fast versions."""
    source = drop(x.reshape(-1, x.shape[-1]), dropout, seed).view_as(x)
    return [
        F.linear(x, W, b) + F.linear(F.linear(source, A.to(x.dtype)), B.to(x.dtype))
        for W, b, (A, B) in zip(weights, biases, pairs, strict=True)
    ]
