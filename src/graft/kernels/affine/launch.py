"""The calls of the skinny products' Triton kernels (graft.kernels.affine.tiles): their grids, tiles and room for partial sums.

A sum over tokens (or over inputs) is cut into parts so that every processor has work; the parts are added in a fixed order, so that the
same input gives the same bits. Under Triton's interpreter (TRITON_INTERPRET=1) the same kernels run on a CPU, in float32 throughout.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graft.kernels.affine import tiles
from graft.kernels.cards import on

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Tile = tuple[int, int, int, int, int]
Noise = tuple[Tensor, int, float, bool]
PROCESSORS = 132  # of an H100; any number is right
HALVES = (torch.float16, torch.bfloat16)
AT_ONCE = 3  # maps that one launch takes
FEW = 2048  # tokens, up to which other tiles are faster
WIDEST = 256  # ranks that one launch takes; of more, each launch reads the wide operand again
PULLED = 128  # ranks of one map that `pull_` takes: of more, its parts are larger than what it reads
NORMED = 32  # ranks that the norms' kernel takes, which holds [R, R] sums: of more, torch's products are about as fast
COUNTERS = 1 << 14
SIZES: dict[str, Callable[[int, int], Tile]] = {
    "project": lambda tokens, R: (
        (32, 256, 4, 4, 1) if R <= 64 and tokens <= FEW else (64, 128 if R <= 128 else 64, 4 if R <= 64 else 8, 4, 1)
    ),
    "project dropped": lambda tokens, R: (16, 256, 4, 3, 2) if R <= 64 and tokens <= FEW else (64, min(128, 8192 // R), 4, 3, 2),
    "pull": lambda tokens, R: (32, min(512, 32768 // R), 4 if R <= 32 else 8, 3 if R <= 32 else 4, 1),
    "pull and sum": lambda tokens, R: (64, min(256, 16384 // R), 4 if R <= 16 else 8, 3, 1),
    "outer": lambda tokens, R: (64, 128 if R <= 128 else 64, 8, 4, 1),
    "outer dropped": lambda tokens, R: (
        (64, 64, 4, 4, 4) if R == 128 else (32, 128, 4, 6, 2) if R <= 64 and tokens > FEW else (64, 128 if R <= 64 else 64, 8, 4, 1)
    ),
    "push": lambda tokens, R: (32 if R <= 32 else 64, 128, 4, 1, 1),
    "norms": lambda outs, R: (32, 256, 4, 3, 1),
}
"""Of each kernel, for so many tokens (outputs, for the norms) and ranks: tokens (outputs) a tile, its other side, warps, stages, and
programs for each processor. About the fastest of some on an H100 for the maps of a model of 7 billion parameters, of 512 to 8192 tokens and
16 to 128 ranks a map. Not measured: for 256 ranks, `project` without dropout and `outer`; for 128, both of `pull`.
"""
FITTING: dict[Any, Tile] = {}  # what `fitted` has found


def fitted(name: str, length: int, R: int, run: Callable[..., None], wide: Tensor, *rest: Any) -> None:
    """run(wide, *rest, *tile) with the tile of SIZES or, where the card has too little shared memory for it, the first that fits of those
    with ever fewer stages, down to 2, and then ever smaller sides, down to 32 and 16: 64 KB are enough. Triton tells before it launches.
    """
    tile = SIZES[name](length, R)
    key = name, tile, R, wide.device
    while True:
        tile = FITTING.get(key, tile)
        try:
            with on(wide):
                return run(wide, *rest, *tile)
        except tiles.OutOfResources:
            if tile[:2] == (16, 32) and tile[3] <= 2:
                raise
            FITTING[key] = smaller(tile)


def smaller(tile: Tile) -> Tile:
    """The next tile to try where this one takes too much shared memory."""
    tokens, other, warps, stages, fill = tile
    if stages > 2:
        return tokens, other, warps, stages - 1, fill
    return (tokens, other // 2, warps, stages, fill) if other > 32 else (tokens // 2, other, warps, stages, fill)


def takes(value: Tensor) -> bool:
    """Whether the kernels run on this tensor."""
    return tiles.PRESENT and (value.dtype in HALVES if value.is_cuda else INTERPRETED and value.dtype in (*HALVES, torch.float32))


def padded(ranks: int) -> int:
    """A width that tl.dot accepts: a power of two, at least 16."""
    return max(16, 1 << (ranks - 1).bit_length())


def write(buffer: Tensor, As: list[Tensor], Bs: list[Tensor]) -> None:
    """A_j [r_j, in] and B_j [out_j, r_j] into a pitched buffer (graft.kernels.affine.pitched)."""
    width, bottom = As[0].shape[1], sum(len(B) for B in Bs)
    row = column = 0
    for k in range(0, len(As), AT_ONCE):
        some_A, some_B = ([value.contiguous() for value in values[k : k + AT_ONCE]] for values in (As, Bs))
        outs, ranks, more = [len(B) for B in some_B], [len(A) for A in some_A], AT_ONCE - len(some_A)
        longest = max(value.numel() for value in some_A + some_B)
        with on(buffer):
            tiles.write_branches[(-(-longest // 1024), len(some_A))](
                buffer, *some_A, *some_A[:1] * more, *some_B, *some_B[:1] * more, *outs, *[0] * more, *ranks, *[0] * more,
                row, column, bottom, width, buffer.stride(0), BLOCK=1024,
            )  # fmt: skip
        row, column = row + sum(outs), column + sum(ranks)


@functools.cache
def kept_counters(device: torch.device, stream: int) -> Tensor:
    """Zeros that the kernels of one stream leave as zeros."""
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


def counters(tensor: Tensor, count: int) -> Tensor:
    """So many zeros [int32] for the kernel that runs next: those of the stream, but a recorded graph, which may run on any, has its own."""
    if not tensor.is_cuda:
        return kept_counters(tensor.device, 0)
    if count > COUNTERS or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=tensor.device)
    return kept_counters(tensor.device, torch.cuda.current_stream(tensor.device).cuda_stream)


def parts_of(length: int, block: int, others: int, fill: int) -> tuple[int, int]:
    """Into how many parts to cut a sum over `length`, given so many other programs, for `fill` of them on each processor, and how long each
    is: whole blocks.
    """
    blocks = -(-length // block)
    count = max(1, min(blocks, fill * PROCESSORS // others))
    span = -(-blocks // count) * block
    return -(-length // span), span


def drawn(dropout: float, seed: Tensor | None, x: Tensor) -> Noise:
    """What the kernels take for dropout: the seed, the threshold of 16 bits, the scale, and whether to drop at all."""
    if not dropout or seed is None:
        return x, 0, 1.0, False
    return seed, round(dropout * 2**16), 1 / (1 - dropout), True


def row_norms(W: Tensor, A: Tensor, B: Tensor, own: Tensor) -> Tensor:
    """See `norms.row_norms`."""
    total, R = torch.empty_like(own), padded(len(A))

    def run(W: Tensor, BO: int, BK: int, warps: int, stages: int, _: int) -> None:
        tiles.norms[(-(-len(W) // BO),)](
            W, A, B, own, total, *W.shape, len(A), W.stride(0), FLOAT=INTERPRETED, BO=BO, BK=BK, R=R, num_warps=warps, num_stages=stages
        )  # fmt: skip

    fitted("norms", len(W), R, run, W)
    return total


def project_(xs: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """See `skinny.project_`."""
    S, noise = xs.new_empty(len(xs), len(A)), drawn(dropout, seed, xs)
    for k in range(0, len(A), WIDEST):
        room = xs.shape[1] - A.shape[1] - k if k + WIDEST >= len(A) else 0
        some, own, tail = A[k : k + WIDEST], S[:, k : k + WIDEST], xs[:, A.shape[1] + k :]
        name = "project dropped" if noise[-1] else "project"
        fitted(name, len(xs), padded(len(some)), project_some, xs, tail, some, own, room, noise)
    return S


def project_some(
    xs: Tensor, tail: Tensor, A: Tensor, S: Tensor, room: int, noise: Noise, BT: int, BK: int, warps: int, stages: int, fill: int
) -> None:
    """`project_` of up to WIDEST ranks into S [T, r] and the tail [T, room or more], which is 0 from r to `room`."""
    tokens, (ranks, width), R = len(xs), A.shape, padded(len(A))
    seed, threshold, scale, drops = noise
    rows = -(-tokens // BT)
    count, span = parts_of(width, BK, rows, fill)
    parts = xs.new_empty(count, tokens, R, dtype=torch.float32) if count > 1 else S
    tiles.project[(rows, count)](
        xs, tail, A, parts, counters(xs, rows) if count > 1 else S, S, seed, tokens, width, ranks, room,
        xs.stride(0), A.stride(0), S.stride(0), threshold, scale, span,
        DROPS=drops, FLOAT=INTERPRETED, ALONE=count == 1, BT=BT, BK=BK, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def pull_(dys: Tensor, S: Tensor, B: Tensor, ys: list[Tensor], outputs: list[int], ranks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """See `skinny.pull_`."""
    total = sum(outputs)
    dS, dB = torch.empty_like(S), dys.new_empty(total, max(ranks), dtype=torch.float32)
    sums = dys.new_empty(total if ys else 0, dtype=torch.float32)
    row = column = 0
    for k in range(0, len(outputs), AT_ONCE):
        outs, own = outputs[k : k + AT_ONCE], ranks[k : k + AT_ONCE]
        room = dys.shape[1] - total if k + AT_ONCE >= len(outputs) else 0
        fitted(
            "pull and sum" if ys else "pull", len(dys), padded(max(ranks)), pull_some, dys[:, row:], dys[:, total:], S[:, column:],
            B[row:, column:], ys[k : k + AT_ONCE], dS, dB[row:], sums[row:], outs, own, room, column,
        )  # fmt: skip
        row, column = row + sum(outs), column + sum(own)
    return dS, dB, sums


def pull_some(
    dY: Tensor, tail: Tensor, S: Tensor, B: Tensor, ys: list[Tensor], dS: Tensor, dB: Tensor, sums: Tensor,
    outs: list[int], ranks: list[int], room: int, column: int, BT: int, BO: int, warps: int, stages: int, fill: int,
) -> None:  # fmt: skip
    """`pull_` of up to AT_ONCE maps whose outputs and ranks are the first of dY, S and B, and whose columns of dS start at `column`."""
    tokens, total, R, more = len(dY), sum(outs), padded(dB.shape[1]), [0] * (AT_ONCE - len(outs))
    ends = [sum(-(-n // BO) for n in outs[: k + 1]) for k in range(len(outs))]
    count, span = parts_of(tokens, BT, ends[-1], fill)
    dS_parts = dY.new_empty(ends[-1], tokens, R, dtype=torch.float32)
    dB_parts = dY.new_empty(count, total, R, dtype=torch.float32)
    sums_parts = dY.new_empty(count, total, dtype=torch.float32) if ys else dB_parts
    pointers = [y.contiguous() for y in ys] or [dY]
    pointers += pointers[:1] * (AT_ONCE - len(pointers))
    ranks_of, ends_of = [*ranks, *more], [*ends, *ends[-1:] * len(more)]
    tiles.pull[(ends[-1], count)](
        dY, S, B, *pointers, dS_parts, dB_parts, sums_parts, tokens, *outs, *more, *ranks_of, *ends_of[:2], total,
        dY.stride(0), S.stride(0), B.stride(0), span,
        SUMS=bool(ys), FLOAT=INTERPRETED, BT=BT, BO=BO, R=R, STAGES=stages, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    rows = 16  # that a program adds up
    tiles.finish[(-(-tokens // rows) * len(outs) + -(-total // rows),)](
        dS_parts, dB_parts, sums_parts, tail, dS, dB, sums, tokens, room, tail.stride(0), dS.stride(0), dB.stride(0), column,
        *ranks_of, *ends_of, len(outs), total, count, SUMS=bool(ys), BLOCK=rows, R=R,
    )  # fmt: skip


def outer(dS: Tensor, x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """See `skinny.outer`."""
    dA, noise = x.new_empty(dS.shape[1], x.shape[1], dtype=torch.float32), drawn(dropout, seed, x)
    for k in range(0, len(dA), WIDEST):
        some, name = dA[k : k + WIDEST], "outer dropped" if noise[-1] else "outer"
        fitted(name, len(x), padded(len(some)), outer_some, x, dS[:, k : k + WIDEST], some, noise)
    return dA


def outer_some(x: Tensor, dS: Tensor, dA: Tensor, noise: Noise, BT: int, BI: int, warps: int, stages: int, fill: int) -> None:
    """`outer` of up to WIDEST ranks into dA [r, in]."""
    (tokens, width), ranks, R = x.shape, len(dA), padded(len(dA))
    seed, threshold, scale, drops = noise
    across = -(-width // BI)
    count, span = parts_of(tokens, BT, across, fill)
    parts = x.new_empty(count, width, R, dtype=torch.float32) if count > 1 else dA
    tiles.outer[(across, count)](
        dS, x, parts, counters(x, across) if count > 1 else dA, dA, seed, tokens, width, ranks, dS.stride(0), x.stride(0),
        threshold, scale, span,
        DROPS=drops, FLOAT=INTERPRETED, ALONE=count == 1, BT=BT, BI=BI, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def push_(dx: Tensor, dS: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> None:
    """See `skinny.push_`."""
    noise = drawn(dropout, seed, dx)
    for k in range(0, len(A), WIDEST):
        some = A[k : k + WIDEST]
        fitted("push", len(dx), padded(len(some)), push_some, dx, dS[:, k : k + WIDEST], some, noise)


def push_some(dx: Tensor, dS: Tensor, A: Tensor, noise: Noise, BT: int, BI: int, warps: int, stages: int, _: int) -> None:
    """`push_` of up to WIDEST ranks."""
    (tokens, width), ranks, R = dx.shape, len(A), padded(len(A))
    seed, threshold, scale, _drops = noise
    tiles.push[(-(-tokens // BT), -(-width // BI))](
        dx, dS, A, seed, tokens, width, ranks, dx.stride(0), dS.stride(0), A.stride(0), threshold, scale,
        FLOAT=INTERPRETED, BT=BT, BI=BI, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
