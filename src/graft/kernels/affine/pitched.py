"""Linear maps that share an input in one buffer with a margin, so that a map and its low-rank branch are one product, both ways.

             in         p
         [ W_1      B_1   0  ]   out_1        [x, S] [W_j, B_j]^T      = x W_j^T + S_j B_j^T      S = drop(x) A^T
         [ W_2      0    B_2 ]   out_2
         [ A_1; A_2          ]   p            [dY, dS] [W_1; W_2; A]   = Σ_j dY_j W_j + dS A      dS_j = dY_j B_j

Nothing as wide as x or y is read a second time to add a branch to it. The rows of x and dY are written with a tail of p columns, which
S and dS fill. Where an output is scaled, y_j = c_j z_j, dY_j is c_j times the gradient that comes, and dc_j = Σ_t dY_j * z_j / c_j is
summed in the same reading of it; a scale of exactly 0 gets no gradient. The weights live in the buffer while it is in use: the modules'
own parameters become views of it. S and x are what the backward pass needs; a compiler that may recompute a norm or an activation keeps
S alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.kernels.affine.reference import Branch, scaled
from graft.kernels.affine.skinny import beside, outer, project_, pull_, push_, write

ALIGNED = 16  # columns: rows stay aligned for tensor cores and their loads


class Products(torch.autograd.Function):
    """y_j [..., out_j] of x [..., in]; gradients for x, and for A_j, B_j and c_j in master precision."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        maps: "Pitched",
        seed: Tensor | None,
        dropout: float,
        biases: tuple[Tensor | None, ...],
        *branches: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """`branches` are A_1, B_1, c_1, A_2, ...; the buffer already holds the values of A and B, in its dtype."""
        held, total, ranked, inputs = maps.held(), sum(maps.outputs), sum(maps.ranks), x.shape[-1]
        buffer = maps.buffer_of(held, x.dtype)
        rows = x.reshape(-1, inputs)
        xs = beside([rows], buffer.shape[1] - inputs)
        S = project_(xs, buffer[total : total + ranked, :inputs], dropout, seed)
        zs, row = [], 0
        for outs, bias in zip(maps.outputs, biases, strict=True):
            zs.append(F.linear(xs, buffer[row : row + outs], None if bias is None else bias.to(x.dtype)))
            row += outs
        cs = branches[2::3]
        ctx.save_for_backward(x, S, seed, *held, *cs, *([] if cs[0] is None else zs))
        ctx.maps, ctx.dropout = maps, dropout
        return tuple(scaled(z, c).view(*x.shape[:-1], -1) for z, c in zip(zs, cs, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        """From dY_j [..., out_j]."""
        x, S, seed, *rest = ctx.saved_tensors
        outputs, ranks, count = ctx.maps.outputs, ctx.maps.ranks, len(ctx.maps.held())
        held, cs, zs = rest[:count], rest[count : count + len(dys)], rest[count + len(dys) :]
        total, ranked, inputs = sum(outputs), sum(ranks), x.shape[-1]
        rows = x.reshape(-1, inputs)
        dY = beside([scaled(dy.reshape(-1, dy.shape[-1]), c) for dy, c in zip(dys, cs, strict=True)], margin(ranks))
        buffer = ctx.maps.buffer_of(held, x.dtype, after=dY)
        dS, dB, sums = pull_(dY, S, buffer[:total, inputs : inputs + ranked], zs, list(outputs), list(ranks))
        dx = None
        if ctx.needs_input_grad[0]:
            deep = total if ctx.dropout else total + ranked
            dx = dY[:, :deep] @ buffer[:deep, :inputs]
            if ctx.dropout:
                push_(dx, dS, buffer[total : total + ranked, :inputs], ctx.dropout, seed)
            dx = dx.view(x.shape)
        dA = outer(dS, rows, ctx.dropout, seed)
        return dx, None, None, None, None, *split(dA, dB, sums, cs, outputs, ranks)


def split(
    dA: Tensor, dB: Tensor, sums: Tensor, cs: Sequence[Tensor | None], outputs: Sequence[int], ranks: Sequence[int]
) -> list[Tensor | None]:
    """dA_1, dB_1, dc_1, dA_2, ... of dA [R, in], dB [Σ out, max r] and the sums of dY * z [Σ out]."""
    found: list[Tensor | None] = []
    row = column = 0
    for c, outs, r in zip(cs, outputs, ranks, strict=True):
        dc = None if c is None else torch.where(c == 0, 0, sums[row : row + outs] / c)
        found += [dA[column : column + r], dB[row : row + outs, :r], dc]
        row, column = row + outs, column + r
    return found


def margin(ranks: Sequence[int]) -> int:
    """p: Σ r, rounded up."""
    return -(-sum(ranks) // ALIGNED) * ALIGNED


class Pitched:
    """The buffer [Σ out + p, in + p] of the maps W_j [out_j, in] and room for branches of ranks r_j; p is Σ r, rounded up."""

    def __init__(self, weights: Sequence[Tensor], ranks: Sequence[int]) -> None:
        """A copy of the weights; `views` are they where they now live."""
        self.outputs, self.ranks = tuple(len(weight) for weight in weights), tuple(ranks)
        self.inputs, total = weights[0].shape[1], sum(self.outputs)
        self.buffer = weights[0].new_zeros(total + margin(ranks), self.inputs + margin(ranks))
        for view, weight in zip(self.views(), weights, strict=True):
            view.copy_(weight)

    def views(self) -> list[Tensor]:
        """W_j [out_j, in], each a view of the buffer."""
        return list(torch.split(self.buffer[: sum(self.outputs), : self.inputs], list(self.outputs)))

    @torch.no_grad()
    def write(self, branches: Sequence[Branch]) -> None:
        """Put A_j [r_j, in] and B_j [out_j, r_j] in their places, in the buffer's dtype."""
        write(self.buffer, [A for A, _, _ in branches], [B for _, B, _ in branches])

    def held(self) -> list[Tensor]:
        """What is held between the passes, of which `buffer_of` makes the buffer."""
        return [self.buffer]

    def buffer_of(self, held: Sequence[Tensor], dtype: torch.dtype, after: Tensor | None = None) -> Tensor:
        """The buffer of what is held, for a product in `dtype`; in a backward pass `after` is a tensor that exists only there."""
        return held[0]

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
        ys: tuple[Tensor, ...] = Products.apply(x, self, seed, dropout, tuple(biases), *flat)  # type: ignore[no-untyped-call]
        return list(ys)
