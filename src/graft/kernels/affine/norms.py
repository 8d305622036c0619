"""Norms of the rows of W + B A, which DoRA divides by, without that sum.

    ‖W + B A‖² = ‖W‖² + 2 rowsum((W A^T) * B) + rowsum((B (A A^T)) * B)

W [out, in] in the base's dtype, in which W A^T is multiplied; A [r, in], B [out, r] and ‖W‖² [out] in master precision, in which all else
is summed. A CUDA kernel reads W once and nothing else that is wide; of ranks above launch.NORMED, torch's products do.
"""

import torch
from torch import Tensor

from graft.kernels.affine import launch
from graft.kernels.operators import operator


@torch.no_grad()
def row_norms(W: Tensor, A: Tensor, B: Tensor, own: Tensor) -> Tensor:
    """[out], detached, of `own` = ‖W‖² [out]; never 0, so that a row of zeros scales by 0 and not by NaN."""
    return compiled(W, A, B, own) if launch.takes(W) or torch.compiler.is_compiling() else plain(W, A, B, own)


@operator("row_norms", lambda W, A, B, own: torch.empty_like(own))
def compiled(W: Tensor, A: Tensor, B: Tensor, own: Tensor) -> Tensor:
    """The same, as a compiler takes it."""
    if launch.takes(W) and W.stride(1) == 1 and len(A) <= launch.NORMED:
        return launch.row_norms(W, A.contiguous(), B.contiguous(), own)
    return plain(W, A, B, own)


def plain(W: Tensor, A: Tensor, B: Tensor, own: Tensor) -> Tensor:
    """The same, by torch's products: `own` + rowsum((2 W A^T + B (A A^T)) * B)."""
    cross = (W @ A.t().to(W.dtype)).to(A.dtype)
    total = own + (torch.addmm(cross, B, A @ A.t(), beta=2) * B).sum(1)
    return total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
