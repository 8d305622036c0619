"""Linear maps that share an input, their weights where they are: the A's of all branches stacked in one product, B's added to the outputs.

    S = drop(x) [A_1; A_2]^T       y_j = x W_j^T + b_j, then y_j += S_j B_j^T       dx = Σ_j dY_j W_j + [dS_1, dS_2] [A_1; A_2]

For what a pitched buffer does not pay for: CPUs, where the adding stays in the cache, and weights that cannot move.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.kernels.affine.skinny import drop, wide


class Products(torch.autograd.Function):
    """y_j [..., out_j] of x [..., in]; gradients for x, and for A_j and B_j in master precision."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        seed: Tensor | None,
        dropout: float,
        ranks: tuple[int, ...],
        biases: tuple[Tensor | None, ...],
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """A [R, in] and the first of `rest`, all W_j [out_j, in] and all B_j [out_j, r_j], are in the dtype of x; the others are A_1, B_1,
        A_2, ... in master precision.
        """
        maps = len(ranks)
        weights, Bs = rest[:maps], rest[maps : 2 * maps]
        rows = x.reshape(-1, x.shape[-1])
        S = drop(rows, dropout, seed) @ A.t()
        ctx.save_for_backward(x, S, A, seed, *rest[: 2 * maps])
        ctx.dropout, ctx.ranks = dropout, ranks
        ys = []
        for W, B, bias, own in zip(weights, Bs, biases, S.split(ranks, 1), strict=True):
            ys.append(F.linear(rows, W, bias).addmm_(own, B.t()).view(*x.shape[:-1], len(W)))
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        """From dY_j [..., out_j]."""
        x, S, A, seed, *rest = ctx.saved_tensors
        maps = len(ctx.ranks)
        weights, Bs = rest[:maps], rest[maps:]
        rows, kind = x.reshape(-1, x.shape[-1]), wide(x.dtype)
        dYs = [dy.reshape(-1, dy.shape[-1]) for dy in dys]
        dS = torch.cat([dY @ B for dY, B in zip(dYs, Bs, strict=True)], 1)
        dBs = [(dY.t() @ own).to(kind) for dY, own in zip(dYs, S.split(ctx.ranks, 1), strict=True)]
        dAs = (dS.t() @ drop(rows, ctx.dropout, seed)).to(kind).split(ctx.ranks)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = drop(dS @ A, ctx.dropout, seed)
            for dY, W in zip(dYs, weights, strict=True):
                dx.addmm_(dY, W)
            dx = dx.view(x.shape)
        pairs = [value for pair in zip(dAs, dBs, strict=True) for value in pair]
        return dx, None, None, None, None, None, *[None] * (2 * maps), *pairs


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
    def write(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy A_j [r_j, in] and B_j [out_j, r_j]."""
        for (A, B), own, held in zip(pairs, self.A.split(self.ranks), self.Bs, strict=True):
            own.copy_(A)
            held.copy_(B)

    def run(
        self,
        x: Tensor,
        biases: Sequence[Tensor | None],
        pairs: Sequence[tuple[Tensor, Tensor]],
        dropout: float = 0.0,
        seed: Tensor | None = None,
    ) -> list[Tensor]:
        """Every y_j [..., out_j], as `reference.linears` gives them; gradients go to the tensors of `pairs`, whose values were written."""
        flat = [value for pair in pairs for value in pair]
        ys: tuple[Tensor, ...] = Products.apply(x, self.A, seed, dropout, self.ranks, tuple(biases), *self.weights, *self.Bs, *flat)  # type: ignore[no-untyped-call]
        return list(ys)
