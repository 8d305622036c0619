"""Linear maps that share an input in one buffer with a margin, so that a map and its low-rank branch are one product, both ways.

             in         p
         [ W_1      B_1   0  ]   out_1        [x, S] [W_j, B_j]^T      = x W_j^T + S_j B_j^T      S = drop(x) A^T
         [ W_2      0    B_2 ]   out_2
         [ A_1; A_2          ]   p            [dY, dS] [W_1; W_2; A]   = Σ_j dY_j W_j + dS A      dS_j = dY_j B_j

Nothing as wide as x or y is read a second time to add a branch to it. The rows of x and dY are written with a tail of p columns, which
S and dS fill. The weights live in the buffer while it is in use: the modules' own parameters become views of it. S and x are what the
backward pass needs; a compiler that may recompute a norm or an activation keeps S alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.kernels.affine.skinny import outer, project_, pull_, push_, write

ALIGNED = 16  # columns: rows stay aligned for tensor cores and their loads


class Products(torch.autograd.Function):
    """y_j [..., out_j] of x [..., in]; gradients for x, and for A_j and B_j in master precision."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        buffer: Tensor,
        seed: Tensor | None,
        dropout: float,
        outputs: tuple[int, ...],
        ranks: tuple[int, ...],
        biases: tuple[Tensor | None, ...],
        *pairs: Tensor,
    ) -> tuple[Tensor, ...]:
        """`pairs` are A_1, B_1, A_2, ... whose values the buffer already holds, in its dtype."""
        total, ranked, inputs = sum(outputs), sum(ranks), x.shape[-1]
        rows = x.reshape(-1, inputs)
        xs = torch.cat([rows, rows.new_zeros(rows.shape[0], buffer.shape[1] - inputs)], 1)
        S = project_(xs, buffer[total : total + ranked, :inputs], dropout, seed)
        ctx.save_for_backward(x, S, buffer, seed)
        ctx.dropout, ctx.outputs, ctx.ranks = dropout, outputs, ranks
        ys, row = [], 0
        for outs, bias in zip(outputs, biases, strict=True):
            ys.append(F.linear(xs, buffer[row : row + outs], bias).view(*x.shape[:-1], outs))
            row += outs
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        """From dY_j [..., out_j]."""
        x, S, buffer, seed = ctx.saved_tensors
        total, ranked, inputs = sum(ctx.outputs), sum(ctx.ranks), x.shape[-1]
        rows = x.reshape(-1, inputs)
        tail = rows.new_zeros(rows.shape[0], buffer.shape[0] - total)
        dY = torch.cat([*(dy.reshape(-1, dy.shape[-1]) for dy in dys), tail], 1)
        dS, dB = pull_(dY, S, buffer[:total, inputs : inputs + ranked], list(ctx.outputs), list(ctx.ranks))
        dx = None
        if ctx.needs_input_grad[0]:
            deep = total if ctx.dropout else total + ranked
            dx = dY[:, :deep] @ buffer[:deep, :inputs]
            if ctx.dropout:
                push_(dx, dS, buffer[total : total + ranked, :inputs], ctx.dropout, seed)
            dx = dx.view(x.shape)
        dA = outer(dS, rows, ctx.dropout, seed)
        return dx, None, None, None, None, None, None, *split(dA, dB, ctx.outputs, ctx.ranks)


def split(dA: Tensor, dB: Tensor, outputs: Sequence[int], ranks: Sequence[int]) -> list[Tensor]:
    """dA_1, dB_1, dA_2, ... of dA [R, in] and dB [Σ out, max r]."""
    found, row, column = [], 0, 0
    for outs, r in zip(outputs, ranks, strict=True):
        found += [dA[column : column + r], dB[row : row + outs, :r]]
        row, column = row + outs, column + r
    return found


class Pitched:
    """The buffer [Σ out + p, in + p] of the maps W_j [out_j, in] and room for branches of ranks r_j; p is Σ r, rounded up."""

    def __init__(self, weights: Sequence[Tensor], ranks: Sequence[int]) -> None:
        """A copy of the weights; `views` are they where they now live."""
        self.outputs, self.ranks = tuple(len(weight) for weight in weights), tuple(ranks)
        self.inputs, total = weights[0].shape[1], sum(self.outputs)
        margin = -(-sum(ranks) // ALIGNED) * ALIGNED
        self.buffer = weights[0].new_zeros(total + margin, self.inputs + margin)
        for view, weight in zip(self.views(), weights, strict=True):
            view.copy_(weight)

    def views(self) -> list[Tensor]:
        """W_j [out_j, in], each a view of the buffer."""
        return list(self.buffer[: sum(self.outputs), : self.inputs].split(self.outputs))

    @torch.no_grad()
    def write(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put A_j [r_j, in] and B_j [out_j, r_j] in their places, in the buffer's dtype."""
        write(self.buffer, [A for A, _ in pairs], [B for _, B in pairs])

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
        ys: tuple[Tensor, ...] = Products.apply(x, self.buffer, seed, dropout, self.outputs, self.ranks, tuple(biases), *flat)  # type: ignore[no-untyped-call]
        return list(ys)
