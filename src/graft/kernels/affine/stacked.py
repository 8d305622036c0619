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
        A: Tensor,
        seed: Tensor | None,
        dropout: float,
        ranks: tuple[int, ...],
        biases: tuple[Tensor | None, ...],
        *rest: Any,
    ) -> tuple[Tensor, ...]:
        """A [R, in] and the first of `rest`, all W_j [out_j, in] and all B_j [out_j, r_j], are in the dtype of x; the others are A_1, B_1,
        c_1, A_2, ... in master precision.
        """
        maps = len(ranks)
        weights, Bs = rest[:maps], rest[maps : 2 * maps]
        rows = x.reshape(-1, x.shape[-1])
        S = drop(rows, dropout, seed) @ A.t()
        zs = []
        for W, B, bias, own in zip(weights, Bs, biases, torch.split(S, list(ranks), 1), strict=True):
            zs.append(F.linear(rows, W, bias).addmm_(own, B.t()))
        cs = rest[2 * maps + 2 :: 3]
        ctx.save_for_backward(x, S, A, seed, *rest[: 2 * maps], *cs, *(() if cs[0] is None else zs))
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
        dBs = [
            (own.t() @ dY).to(kind).t() for dY, own in zip(dYs, torch.split(S, ctx.ranks, 1), strict=True)
        ]  # faster than the other way round
        dAs = (dS.t() @ drop(rows, ctx.dropout, seed)).to(kind)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = drop(dS @ A, ctx.dropout, seed)
            for dY, W in zip(dYs, weights, strict=True):
                dx.addmm_(dY, W)
            dx = dx.view(x.shape)
        branches = [value for branch in zip(torch.split(dAs, ctx.ranks), dBs, dcs, strict=True) for value in branch]
        return dx, None, None, None, None, None, *[None] * (2 * maps), *branches


def rescaled(z: Tensor, c: Tensor | None) -> Tensor:
    """c * z in the dtype of z, as `scaled`; in half precision and near 1 as z + (c - 1) z, which needs no wider copy of z.

    c - 1 is rounded to half precision, and the error of that is below the rounding of the result as long as |c - 1| < |c|.
    """
    if c is None or z.dtype == c.dtype or torch.compiler.is_compiling() or not bool((c > 0.5).all()):
        return scaled(z, c)
    return torch.addcmul(z, z, (c - 1).to(z.dtype))


class Stacked:
    """The maps W_j [out_j, in] and copies of their branches in the dtype they are computed in."""

    def __init__(self, weights: Sequence[Tensor], ranks: Sequence[int]) -> None:
        self.weights, self.ranks = list(weights), tuple(ranks)
        first = weights[0]
        self.A = first.new_zeros(sum(ranks), first.shape[1])
        self.Bs = [first.new_zeros(len(weight), r) for weight, r in zip(weights, ranks, strict=True)]

    def views(self) -> list[Tensor]:
        """W_j [out_j, in], where they always were."""
        return self.weights

    @torch.no_grad()
    def write(self, branches: Sequence[Branch]) -> None:
        """Copy A_j [r_j, in] and B_j [out_j, r_j]."""
        for (A, B, _), own, held in zip(branches, torch.split(self.A, list(self.ranks)), self.Bs, strict=True):
            own.copy_(A)
            held.copy_(B)

    def run(
        self,
        x: Tensor,
        biases: Sequence[Tensor | None],
        branches: Sequence[Branch],
        dropout: float = 0.0,
        seed: Tensor | None = None,
    ) -> list[Tensor]:
        """Every y_j [..., out_j], as `reference.linears` gives them, with branches whose A and B were written. c is of all or of none."""
        flat = [value for branch in branches for value in branch]
        ys: tuple[Tensor, ...] = Products.apply(x, self.A, seed, dropout, self.ranks, tuple(biases), *self.weights, *self.Bs, *flat)  # type: ignore[no-untyped-call]
        return list(ys)
