"""Linear maps that share an input, each with a low-rank branch: the plain torch version, to which the fast ones are held.

    y_j = c_j (x W_j^T + b_j + (drop(x) A_j^T) B_j^T)

x [..., in], W_j [out_j, in], b_j [out_j] or None, A_j [r_j, in], B_j [out_j, r_j], c_j [out_j] or None, y_j [..., out_j]. W_j and b_j are
frozen. A, B and c come in master precision; A and B are cast once to the dtype of x, and the product with c is rounded once. All of the
branches of one group drop the same values of x.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from graft.kernels.affine.skinny import drop

Branch = tuple[Tensor, Tensor, Tensor | None]
"""(A, B, c) of one linear map."""


def linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    branches: Sequence[Branch],
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """Every y_j. `seed` (an int64 scalar) decides what `dropout` drops, as in the fast versions."""
    source, ys = drop(x.reshape(-1, x.shape[-1]), dropout, seed).view_as(x), []
    for W, b, (A, B, c) in zip(weights, biases, branches, strict=True):
        y = F.linear(x, W, b) + F.linear(F.linear(source, A.to(x.dtype)), B.to(x.dtype))
        ys.append(scaled(y, c))
    return ys


def scaled(value: Tensor, c: Tensor | None) -> Tensor:
    """c * value in the dtype of value, rounded once (half precision has no c closer to 1 than 1 +- 0.004); value itself without c."""
    return value if c is None else (value * c).to(value.dtype)
