"""Packed weights made dense for one product, as an operator that a compiler takes as it is; alone, or below and beside low-rank branches.

             in         p
         [ W_1      B_1   0  ]   out_1
         [ W_2      0    B_2 ]   out_2        the buffer of graft.kernels.affine.pitched, made anew for each pass and dropped after it
         [ A_1; A_2          ]   p

On CUDA the packed values become dense where they are to lie (graft.kernels.nf4.tiles); elsewhere bitsandbytes makes them dense and they are
copied there. `after` is a tensor of the backward pass: without it a compiler sees that both passes make the same weight, makes it once and
keeps it between them, which is what packing is there to avoid.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from graft.kernels.nf4.reference import Kind, dense, kind, parts
from graft.kernels.operators import operator

TRITON = importlib.util.find_spec("triton") is not None
if TRITON:
    from graft.kernels.nf4 import tiles


def dequantise(weight: Any, after: Tensor | None = None) -> Tensor:
    """The dense weight [out, in] of a packed 4-bit parameter, as `reference.dequantise` gives it, to the bit."""
    return unpacked([weight], None, None, after).view(weight.quant_state.shape)


def unpacked(weights: Sequence[Any], A: Tensor | None, B: Tensor | None, after: Tensor | None = None) -> Tensor:
    """[W, B; A, ...] [Σ out + p, in + p] of packed W_j [out_j, in] of one kind, A [p, in] and B [Σ out, p]; W of one without these.

    In the dtype that the weights were quantised from, which A and B have. What stands below B has no meaning. Raises ModelError as
    `reference.dequantise` does.
    """
    packed, inputs = kind(weights[0]), weights[0].quant_state.shape[-1]
    outputs = [weight.quant_state.shape.numel() // inputs for weight in weights]
    tensors = [part for weight in weights for part in parts(weight)]
    runs = compiled if torch.compiler.is_compiling() or takes(tensors[0], inputs, packed.block) else plain
    return runs(tensors, A, B, after, outputs, inputs, *packed)


def takes(values: Tensor, inputs: int, block: int) -> bool:
    """Whether the kernel runs on a packed weight."""
    return TRITON and tiles.takes(values, inputs, block)


def like(
    tensors: list[Tensor], A: Tensor | None, B: Tensor | None, after: Tensor | None, outputs: list[int], inputs: int,
    bits: str, block: int, nested: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The buffer, empty."""
    return room(tensors, A, B, outputs, inputs, dtype)


@operator("unpacked", like)
def compiled(
    tensors: list[Tensor], A: Tensor | None, B: Tensor | None, after: Tensor | None, outputs: list[int], inputs: int,
    bits: str, block: int, nested: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The same of the weights' parts, those of one after those of the other."""
    if not takes(tensors[0], inputs, block):
        return plain(tensors, A, B, after, outputs, inputs, bits, block, nested, dtype)
    buffer = room(tensors, A, B, outputs, inputs, dtype)
    for own, rows in each(tensors, outputs):
        tiles.fill(buffer[rows], own, block, nested, None if B is None else B[rows])
    if A is not None:
        buffer[sum(outputs) :, :inputs] = A
    return buffer


def plain(
    tensors: list[Tensor], A: Tensor | None, B: Tensor | None, after: Tensor | None, outputs: list[int], inputs: int,
    bits: str, block: int, nested: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The same, by bitsandbytes."""
    packed = Kind(bits, block, nested, dtype)
    if A is None or B is None:
        return dense(tensors, (outputs[0], inputs), packed)
    buffer = room(tensors, A, B, outputs, inputs, dtype)
    for own, rows in each(tensors, outputs):
        buffer[rows, :inputs] = dense(own, (rows.stop - rows.start, inputs), packed)
    buffer[: len(B), inputs:] = B
    buffer[len(B) :, :inputs] = A
    return buffer


def each(tensors: list[Tensor], outputs: list[int]) -> Iterator[tuple[list[Tensor], slice]]:
    """The parts of each weight and its rows."""
    count, row = len(tensors) // len(outputs), 0
    for number, outs in enumerate(outputs):
        yield tensors[number * count : (number + 1) * count], slice(row, row + outs)
        row += outs


def room(tensors: list[Tensor], A: Tensor | None, B: Tensor | None, outputs: list[int], inputs: int, dtype: torch.dtype) -> Tensor:
    """Memory for the buffer."""
    below, margin = (0, 0) if A is None or B is None else (len(A), B.shape[1])
    return torch.empty(sum(outputs) + below, inputs + margin, dtype=dtype, device=tensors[0].device)
