"""Linear maps that share an input, their weights where they are: the A's of all branches stacked in one product, B's added to the outputs.

    S = drop(x) [A_1; A_2]^T       y_j = x W_j^T + b_j, then y_j += S_j B_j^T       dx = Σ_j dY_j W_j + [dS_1, dS_2] [A_1; A_2]

Where an output is scaled, y_j = c_j z_j, dY_j is c_j times the gradient that comes and dc_j the sum of that gradient times z_j.
For what a pitched buffer does not pay for: CPUs, where the adding stays in the cache, and weights that cannot move.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.kernels.affine.reference import Branch, scaled
from graft.kernels.affine.skinny import drop, wide


class Products(torch.autograd.Function):
    """y_j [..., out_j] of x [..., in]; gradients for x, and for A_j, B_j and c_j in master precision."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        seed: Tensor | None,
        dropout: float,
        weights: tuple[Tensor, ...],
        biases: tuple[Tensor | None, ...],
        *branches: Any,
    ) -> tuple[Tensor, ...]:
        """`branches` are A_1, B_1, c_1, A_2, ... in master precision."""
        ranks = [len(A) for A in branches[::3]]
        A = torch.cat(branches[::3]).to(x.dtype)
        Bs = [B.to(x.dtype) for B in branches[1::3]]
        rows = x.reshape(-1, x.shape[-1])
        S = drop(rows, dropout, seed) @ A.t()
        zs = []
        for W, B, bias, own in zip(weights, Bs, biases, torch.split(S, ranks, 1), strict=True):
            zs.append(F.linear(rows, W, bias).addmm_(own, B.t()))
        cs = branches[2::3]
        ctx.save_for_backward(x, S, A, seed, *weights, *Bs, *cs, *(() if cs[0] is None else zs))
        ctx.dropout, ctx.ranks = dropout, ranks
        return tuple(rescaled(z, c).view(*x.shape[:-1], -1) for z, c in zip(zs, cs, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        """From dY_j [..., out_j]."""
        x, S, A, seed, *rest = ctx.saved_tensors
        maps = len(ctx.ranks)
        weights, Bs, cs, zs = (rest[k : k + maps] for k in range(0, 4 * maps, maps))
        rows, kind = x.reshape(-1, x.shape[-1]), wide(x.dtype)
        dYs = [dy.reshape(-1, dy.shape[-1]) for dy in dys]
        dcs = [torch.sum(dY * z, 0, dtype=kind) for dY, z in zip(dYs, zs, strict=True)] if zs else [None] * maps
        dYs = [rescaled(dY, c) for dY, c in zip(dYs, cs, strict=True)]
        dS = torch.cat([dY @ B for dY, B in zip(dYs, Bs, strict=True)], 1)
        turned = [own.t() @ dY for dY, own in zip(dYs, torch.split(S, ctx.ranks, 1), strict=True)]  # faster than the other way round
        dBs = [dB.t().to(kind, memory_format=torch.contiguous_format) for dB in turned]
        dAs = (dS.t() @ drop(rows, ctx.dropout, seed)).to(kind)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = drop(dS @ A, ctx.dropout, seed)
            for dY, W in zip(dYs, weights, strict=True):
                dx.addmm_(dY, W)
            dx = dx.view(x.shape)
        branches = [value for branch in zip(torch.split(dAs, ctx.ranks), dBs, dcs, strict=True) for value in branch]
        return dx, None, None, None, None, *branches


def rescaled(z: Tensor, c: Tensor | None) -> Tensor:
    """c * z in the dtype of z, as `scaled`; in half precision and near 1 as z + (c - 1) z, which needs no wider copy of z.

    c - 1 is rounded to half precision, and the error of that is below the rounding of the result as long as |c - 1| < |c|.
    """
    if c is None or z.dtype == c.dtype or torch.compiler.is_compiling() or not bool((c > 0.5).all()):
        return scaled(z, c)
    return torch.addcmul(z, z, (c - 1).to(z.dtype))


class Stacked:
    """The maps W_j [out_j, in], where they are."""

    def __init__(self, weights: Sequence[Tensor], ranks: Sequence[int]) -> None:
        self.weights = list(weights)

    def views(self) -> list[Tensor]:
        """W_j [out_j, in], where they always were."""
        return self.weights

    def run(
        self,
        x: Tensor,
        biases: Sequence[Tensor | None],
        branches: Sequence[Branch],
        dropout: float = 0.0,
        seed: Tensor | None = None,
    ) -> list[Tensor]:
        """Every y_j [..., out_j], as `reference.linears` gives them. c is of all or of none."""
        flat = [value for branch in branches for value in branch]
        ys: tuple[Tensor, ...] = Products.apply(x, seed, dropout, tuple(self.weights), tuple(biases), *flat)  # type: ignore[no-untyped-call]
        return list(ys)
