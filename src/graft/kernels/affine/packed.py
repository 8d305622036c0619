"""The pitched buffer of maps whose weights are packed in 4 bits: made anew for each pass, from the packed weights and what is held of the
branches, and dropped after it (graft.kernels.nf4.unpack).

Between the passes nothing dense is kept but the margins of the buffer, A [p, in] and B [Σ out, p], in the dtype that the weights were
quantised from. Making the buffer reads every packed byte once and writes what the products read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graft.kernels import nf4
from graft.kernels.affine.pitched import Pitched, margin
from graft.kernels.affine.reference import Branch


class Packed(Pitched):
    """Packed maps W_j [out_j, in], all of one kind, and room for branches of ranks r_j; p is Σ r, rounded up."""

    def __init__(self, weights: Sequence[Any], ranks: Sequence[int]) -> None:
        """The weights stay where they are."""
        self.weights, self.ranks = list(weights), tuple(ranks)
        self.outputs, self.inputs = tuple(weight.quant_state.shape[0] for weight in weights), weights[0].quant_state.shape[1]
        room = {"dtype": nf4.kind(weights[0]).dtype, "device": weights[0].device}
        self.A, self.B = torch.zeros(margin(ranks), self.inputs, **room), torch.zeros(sum(self.outputs), margin(ranks), **room)

    def views(self) -> list[Tensor]:
        """None: no weight has moved."""
        return []

    @torch.no_grad()
    def write(self, branches: Sequence[Branch]) -> None:
        """Put A_j [r_j, in] and B_j [out_j, r_j] in their places, in the dtype of the weights."""
        row = column = 0
        for A, B, _ in branches:
            self.A[column : column + len(A)] = A
            self.B[row : row + len(B), column : column + len(A)] = B
            row, column = row + len(B), column + len(A)

    def held(self) -> list[Tensor]:
        """The margins."""
        return [self.A, self.B]

    def buffer_of(self, held: Sequence[Tensor], dtype: torch.dtype, after: Tensor | None = None) -> Tensor:
        """The buffer of what is held, for a product in `dtype`."""
        A, B = held
        return nf4.unpacked(self.weights, A, B, after).to(dtype)
