"""The calls of the kernels of graft.kernels.slots.tiles: grids and tiles, from shapes alone.

A kernel is compiled for each set of its constants, up to a second each. They are few, and follow from sizes alone, not from which adapters
are there: `graft.kernels.slots.ahead` compiles all that common sizes need, so that loading an adapter compiles none.

Under Triton's interpreter (TRITON_INTERPRET=1) the same kernels run on a CPU, in float32 throughout.
"""

import functools
import itertools
import math
import os
from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from graft.kernels.activations import ACTIVATIONS
from graft.kernels.cards import on
from graft.kernels.slots import tiles
from graft.kernels.slots.stack import GROUP, Stack

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALVES = (torch.float16, torch.bfloat16)
AT_ONCE = 3  # modules that one launch takes
CODES = {name.removesuffix("_relu").upper(): code for code, name in enumerate(ACTIVATIONS) if code}
LONGEST = 64  # tokens of a tile
NARROW = 64  # columns of one step where there are no more
ANY = math.inf
Map = tuple[Tensor, Tensor | None]
"""A linear map's weight [out, in] and bias [out]."""
Choices = tuple[tuple[float, tuple[int, ...]], ...]
Tiles = dict[int | None, Choices]
SHRINK: Tiles = {
    32: ((2048, (16, 256, 264, 16, 2, 7)), (ANY, (32, 256, 264, 16, 2, 7))),
    64: ((2048, (32, 256, 132, 8, 2, 99)), (ANY, (64, 128, 264, 8, 2, 99))),
    None: ((ANY, (32, 256, 132, 16, 1, 99)),),
}
"""Of `shrink`, by the tokens of its only tile at most (None: more tiles) and how many columns there are at most: columns of a program,
inputs of a step, programs to have at least, parts of a sum at most, which one program adds up, steps of a part at least and at most.
"""
EXPAND: Tiles = {
    32: ((8192, (32, 256, 4, 2)), (ANY, (128, 64, 4, 2))),
    64: ((4224, (32, 256, 4, 2)), (8192, (32, 128, 4, 2)), (ANY, (128, 64, 4, 2))),
    None: ((4224, (128, 64, 4, 2)), (ANY, (64, 64, 4, 3))),
}
"""Of `expand`, by the same and how many outputs there are at most: outputs of a program, columns of a step at most, warps, stages.

Measured on an H100 within layers of 4096 by 14336, with 8 to 128 adapters; 4224 outputs are one program for each of its processors.
"""
PROJECT: Tiles = {
    32: ((4096, (32, 256, 4, 4)), (ANY, (64, 128, 4, 5))),
    64: ((4096, (32, 256, 4, 4)), (16384, (64, 128, 4, 4)), (ANY, (128, 128, 4, 4))),
}
"""Of `project`, by the same as of `expand`: columns or outputs of a program, inputs of a step, warps, stages.

Measured within layers of 4096 by 14336 and 2048 by 8192. For one module alone it brought nothing with many adapters.
"""
COUNTERS = 1 << 16
KEPT: dict[tuple[torch.device, int], Tensor] = {}
"""Counters by device and stream."""


def takes(y: Tensor) -> bool:
    """Whether the kernels run on outputs like these."""
    return y.dtype in HALVES if y.is_cuda else INTERPRETED and y.dtype in (*HALVES, torch.float32)


def run(stack: Stack, s: Tensor, x: Tensor | None, ys: Sequence[Tensor]) -> list[Tensor]:
    """As `reference.run`; each y' is contiguous."""
    with on(ys[0]):
        h = ys[0] if stack.of is None else shrink(stack, s, ys[0] if x is None else x, ys[0])
        return expand(stack, s, h, ys)


def joins(stack: Stack, x: Tensor, maps: Sequence[Map]) -> bool:
    """Whether `joined` can be in place of the base's own products and `run`: few tokens, which read maps of the usual sizes and columns."""
    known = len(x) <= LONGEST and stack.A is not None and (INTERPRETED or (x.is_cuda and is_early(x.device)))  # others were not measured
    return (
        known
        and not x.shape[1] % picked(PROJECT, len(x), sum(stack.outs))[1]
        and all(
            value is None or (value.is_contiguous() and value.dtype == x.dtype and value.device == x.device)
            for one in maps
            for value in one
        )
    )


def joined(stack: Stack, s: Tensor, x: Tensor, maps: Sequence[Map]) -> list[Tensor]:
    """As `run` for the y = x W^T + bias of the base's own maps, where it `joins`."""
    with on(x):
        ys, h = project(stack, s, x, maps)
        return expand(stack, s, h, ys)


def project(stack: Stack, s: Tensor, x: Tensor, maps: Sequence[Map]) -> tuple[list[Tensor], Tensor]:
    """Each module's y [T, out], contiguous, and h [T, C] as of `shrink`."""
    assert stack.A is not None
    assert stack.of is not None
    tokens, columns, outs = len(s), len(stack.of), stack.outs
    block, inputs, warps, stages = picked(PROJECT, tokens, sum(outs))
    y, h = x.new_empty(tokens * sum(outs)), x.new_empty(tokens, columns)
    blocks = [-(-size // block) for size in (columns, *outs)]
    more = AT_ONCE - len(maps)
    Ws, biases = ([one[place] for one in maps] for place in range(2))
    biased = sum(1 << place for place, bias in enumerate(biases) if bias is not None)
    tiles.project[(sum(blocks),)](
        x, *Ws, *[Ws[0]] * more, *[x if bias is None else bias for bias in biases], *[x] * more, stack.A, stack.A if stack.a is None else
        stack.a, stack.of, stack.act, s, y, h, tokens, columns // GROUP, x.shape[1], x.stride(0), *ends_of(outs), blocks[0], blocks[1],
        blocks[2] if len(outs) > 1 else 0, bits_of(stack), int(stack.a is not None), biased,
        BT=rows_of(tokens), BC=block, BK=inputs, STAGES=stages, **CODES, FLOAT=INTERPRETED, num_warps=warps, num_stages=stages,
        **soon(x, True),
    )  # fmt: skip
    return parts_of(y, tokens, outs), h


def shrink(stack: Stack, s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """h [T, C], written where a token's slot is the column's alone."""
    tokens, behind = len(s), stack.behind
    A = behind if stack.A is None else stack.A
    assert A is not None
    assert stack.of is not None
    columns = len(stack.of)
    D, first = (A, columns) if behind is None else (behind, stack.first)
    height = rows_of(tokens)
    block, inputs, programs, most, least, longest = picked(SHRINK, tokens, columns)
    grid = -(-tokens // height), -(-columns // block)
    steps = [-(-value.shape[1] // inputs) for value in (A, D)]
    parts = max(1, min(max(-(-programs // (grid[0] * grid[1])), -(-max(steps) // longest)), max(steps) // least, most))
    spans = [-(-count // parts) * inputs for count in steps]
    parts = max(-(-value.shape[1] // span) for value, span in zip((A, D), spans, strict=True))
    h = x.new_empty(tokens, columns)
    partial, done = s.view(torch.float32), s.view(torch.int32)  # of a sum in one part nobody writes or counts the parts
    if parts > 1:
        partial, done = x.new_empty((parts, tokens, columns), dtype=torch.float32), counters(x, grid[0] * grid[1])
    tiles.shrink[(*grid, parts)](
        x, A, y, D, A if stack.a is None else stack.a, stack.of, stack.act, s, h, partial, done, tokens, columns // GROUP, A.shape[1],
        spans[0], x.stride(0), D.shape[1], spans[1], y.stride(0), first, bits_of(stack), int(stack.a is not None),
        BT=height, BC=block, BK=inputs, MOST=most, **CODES, FLOAT=INTERPRETED, num_warps=4, num_stages=3, **soon(x, True),
    )  # fmt: skip
    return h


def expand(stack: Stack, s: Tensor, h: Tensor, ys: Sequence[Tensor]) -> list[Tensor]:
    """c y + h B^T + b of each module [T, out], contiguous."""
    tokens, count = len(s), len(ys)
    out = ys[0].new_empty(tokens * sum(stack.outs))
    height = rows_of(tokens)
    width = 0 if stack.B is None else stack.B.shape[1]
    side, most, warps, stages = picked(EXPAND, tokens, sum(stack.outs))
    step = min(most, NARROW) if width <= NARROW else most  # all in one, if possible: they are read before h is there
    blocks = [-(-size // side) for size in stack.outs]
    more = AT_ONCE - count
    B, b = (ys[0] if value is None else value for value in (stack.B, stack.b))
    c, of = s.view(torch.float32) if stack.c is None else stack.c, s if stack.of is None else stack.of
    there = int(stack.c is not None), int(stack.b is not None)
    tiles.expand[(-(-tokens // height), sum(blocks))](
        *ys, *[ys[0]] * more, h, B, of, c, b, s, out, tokens, count * width // GROUP, width // GROUP, *ends_of(stack.outs), blocks[0],
        blocks[1] if count > 1 else 0, *[y.stride(0) for y in ys], *[ys[0].stride(0)] * more, *there,
        BT=height, BO=side, BC=step, STEPS=steps_of(width, step), SKIPS=width > step, BRANCH=stack.B is not None,
        THERE=tokens > LONGEST, FLOAT=INTERPRETED, num_warps=warps, num_stages=stages, **soon(h, stack.B is not None),
    )  # fmt: skip
    return parts_of(out, tokens, stack.outs)


def parts_of(values: Tensor, tokens: int, outs: Sequence[int]) -> list[Tensor]:
    """Each module's [T, out] of values that lie one module after another."""
    parts = torch.split(values, [tokens * size for size in outs])
    return [part.view(tokens, size) for part, size in zip(parts, outs, strict=True)]


def ends_of(outs: Sequence[int]) -> list[int]:
    """Where each module's outputs end among those of all, for as many as one launch takes."""
    ends = list(itertools.accumulate(outs))
    return ends + ends[-1:] * (AT_ONCE - len(outs))


def bits_of(stack: Stack) -> int:
    """A bit for each activation that there is."""
    return sum(1 << code for code, _ in stack.acts)


def steps_of(width: int, step: int) -> int:
    """Steps that are enough for so many columns: 1, or a power of 4."""
    steps = 1
    while steps * step < width:
        steps *= 4
    return steps


def soon(x: Tensor, follows: bool) -> dict[str, bool]:
    """How a kernel is launched: before the one before it has ended, where the card can and it waits for that one, which it `follows`."""
    early = follows and x.is_cuda and is_early(x.device)
    return {"EARLY": early} | ({"launch_pdl": True} if early else {})


@functools.cache
def is_early(device: torch.device) -> bool:
    """Whether a card starts kernels early, NVIDIA's from Hopper on, and this Triton knows how."""
    known = torch.version.cuda is not None and hasattr(tl.extra.cuda, "gdc_wait")
    return known and torch.cuda.get_device_capability(device) >= (9, 0)


def picked(table: Tiles, tokens: int, size: int) -> tuple[int, ...]:
    """The tiles for so many tokens, and columns or outputs."""
    return next(tile for end, tile in choices(table, tokens) if size <= end)


def choices(table: Tiles, tokens: int) -> Choices:
    """The tiles for so many tokens, each with the columns or outputs that it is for at most."""
    return table[next((most for most in table if most is not None and tokens <= most), None)]


def rows_of(tokens: int) -> int:
    """Tokens of a tile."""
    return min(LONGEST, max(16, 1 << (tokens - 1).bit_length()))


def keep(device: torch.device) -> None:
    """Let all launches on the device's current stream, recorded or not, use the same counters, made here.

    They must not be made while recording, or where graphs have their memory: a graph that was recorded before writes over what is free now.
    """
    zeros = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    KEPT.setdefault((zeros.device, stream_of(zeros)), zeros)  # another engine's graphs may use those that are there


def counters(x: Tensor, count: int) -> Tensor:
    """So many zeros [int32] for the kernel that runs next, which leaves them as zeros: those of its stream, if it has any."""
    kept = KEPT.get((x.device, stream_of(x)))
    return torch.zeros(count, dtype=torch.int32, device=x.device) if kept is None or count > COUNTERS else kept


def stream_of(x: Tensor) -> int:
    """The number of the current stream of a tensor's device."""
    return int(torch.cuda.current_stream(x.device).cuda_stream) if x.is_cuda else 0
