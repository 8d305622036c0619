"""The calls of the skinny products' Triton kernels (graft.kernels.affine.tiles): their grids, tiles and room for partial sums.

A sum over tokens (or over inputs) is cut into parts so that every processor has work; the parts are added in a fixed order by a second
kernel, so that the same input gives the same bits. Under Triton's interpreter (TRITON_INTERPRET=1) the same kernels run on a CPU, in
float32 throughout.
"""

import os

import torch
from torch import Tensor

from graft.kernels.affine import tiles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PROCESSORS = 132  # of an H100; any number is right
HALVES = (torch.float16, torch.bfloat16)
AT_ONCE = 3  # maps that one launch takes
SIZES = {
    "project": lambda tokens, R: (16, 256, 4, 3) if tokens <= 4096 and R <= 64 else (32, 128 if R <= 64 else 64 if R <= 256 else 32, 4, 4),
    "pull": lambda tokens, R: (32, 512, 4, 3) if R <= 32 else (32, max(32, 16384 // R), 8, 3),
    "pull and sum": lambda tokens, R: (16, 256, 4, 4) if R <= 32 else (32, max(32, 8192 // R), 8, 3),
    "outer": lambda tokens, R: (64, 64, 4, 5) if R <= 64 else (64, 64, 8, 4),
    "norms": lambda outs, R: (32, 256, 4, 3) if outs <= 8192 else (32, 128, 4, 4),
    "push": lambda tokens, R: (64, 128, 4, 1),
}
"""Of each kernel, for so many tokens (outputs, for the norms) and ranks: tokens a tile, its other side, warps, stages. The
fastest of some on an H100 at rank 16; for more ranks what fits, unmeasured.
"""


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
        tiles.write_branches[(-(-longest // 1024), len(some_A))](
            buffer, *some_A, *some_A[:1] * more, *some_B, *some_B[:1] * more, *outs, *[0] * more, *ranks, *[0] * more,
            row, column, bottom, width, buffer.stride(0), BLOCK=1024,
        )  # fmt: skip
        row, column = row + sum(outs), column + sum(ranks)


def parts_of(length: int, block: int, others: int) -> tuple[int, int]:
    """Into how many parts to cut a sum over `length`, given so many other programs, and how long each is: whole blocks."""
    blocks = -(-length // block)
    count = max(1, min(blocks, -(-2 * PROCESSORS // others)))
    span = -(-blocks // count) * block
    return -(-length // span), span


def row_norms(W: Tensor, A: Tensor, B: Tensor, own: Tensor) -> Tensor:
    """See `norms.row_norms`."""
    (outs, width), ranks, R = W.shape, len(A), padded(len(A))
    BO, BK, warps, stages = SIZES["norms"](outs, R)
    total = torch.empty_like(own)
    tiles.norms[(-(-outs // BO),)](
        W, A, B, own, total, outs, width, ranks, W.stride(0),
        FLOAT=INTERPRETED, BO=BO, BK=BK if R <= 64 else 32, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return total


def project_(xs: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """See `skinny.project_`."""
    tokens, (ranks, width), R = len(xs), A.shape, padded(A.shape[0])
    BT, BK, warps, stages = SIZES["project"](tokens, R)
    rows, room = -(-tokens // BT), xs.shape[1] - width
    count, span = (1, width) if rows >= PROCESSORS else parts_of(width, BK, rows)
    S = xs.new_empty(tokens, ranks)
    parts = xs.new_empty(count, tokens, R, dtype=torch.float32) if count > 1 else S
    drops = bool(dropout) and seed is not None
    tiles.project_parts[(rows, count)](
        xs, A, parts, S, seed if drops else xs, tokens, width, ranks, room, xs.stride(0), A.stride(0), dropout, span,
        DROPS=drops, FLOAT=INTERPRETED, ALONE=count == 1, BT=BT, BK=BK, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if count > 1:
        gather(parts, xs[:, width:], S, room, 0, [ranks], [count])
    return S


def gather(parts: Tensor, tail: Tensor, S: Tensor, room: int, column: int, ranks: list[int], ends: list[int]) -> None:
    """Add up parts [n, T, R], those before each end for one map, into S and the tail from `column` on."""
    BT, more = 64, AT_ONCE - len(ranks)
    tiles.gather_parts[(-(-len(S) // BT), len(ranks))](
        parts, tail, S, len(S), room, tail.stride(0), S.stride(0), column, *ranks, *[0] * more, *ends, *[ends[-1]] * more, len(ranks),
        BT=BT, R=parts.shape[2],
    )  # fmt: skip


def pull_(dys: Tensor, S: Tensor, B: Tensor, ys: list[Tensor], outputs: list[int], ranks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """See `skinny.pull_`."""
    total = sum(outputs)
    dS, dB = torch.empty_like(S), dys.new_empty(total, max(ranks), dtype=torch.float32)
    sums = dys.new_empty(total if ys else 0, dtype=torch.float32)
    row = column = 0
    for k in range(0, len(outputs), AT_ONCE):
        outs, own = outputs[k : k + AT_ONCE], ranks[k : k + AT_ONCE]
        rows = slice(row, row + sum(outs))
        room = dys.shape[1] - total if k + AT_ONCE >= len(outputs) else 0
        dB_parts, sums_parts = pull_some(
            dys[:, row:], dys[:, total:], S[:, column:], B[row:, column:], ys[k : k + AT_ONCE], dS, outs, own, room, column
        )  # fmt: skip
        torch.sum(dB_parts[:, :, : dB.shape[1]], 0, out=dB[rows])
        if ys:
            torch.sum(sums_parts, 0, out=sums[rows])
        row, column = row + sum(outs), column + sum(own)
    return dS, dB, sums


def pull_some(
    dY: Tensor, tail: Tensor, S: Tensor, B: Tensor, ys: list[Tensor], dS: Tensor, outs: list[int], ranks: list[int], room: int, column: int
) -> tuple[Tensor, Tensor]:
    """`pull_` of up to AT_ONCE maps whose outputs and ranks are the first of dY, S and B; dB and the sums in parts."""
    tokens, R, more = len(dY), padded(max(ranks)), AT_ONCE - len(outs)
    BT, BO, warps, stages = SIZES["pull and sum" if ys else "pull"](tokens, R)
    ends = [sum(-(-n // BO) for n in outs[: k + 1]) for k in range(len(outs))]
    count, span = parts_of(tokens, BT, ends[-1])
    dS_parts = dY.new_empty(ends[-1], tokens, R, dtype=torch.float32)
    dB_parts = dY.new_empty(count, sum(outs), R, dtype=torch.float32)
    sums = dY.new_empty(count, sum(outs), dtype=torch.float32) if ys else dB_parts
    pointers = [y.contiguous() for y in ys] or [dY]
    ends_of, none = [*ends, *[ends[-1]] * more], [0] * more
    tiles.pull_parts[(ends[-1], count)](
        dY, S, B, *pointers, *pointers[:1] * (AT_ONCE - len(pointers)), dS_parts, dB_parts, sums, tokens, *outs, *none, *ranks, *none,
        *ends_of[:2], sum(outs), dY.stride(0), S.stride(0), B.stride(0), span,
        SUMS=bool(ys), FLOAT=INTERPRETED, BT=BT, BO=BO, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    gather(dS_parts, tail, dS, room, column, ranks, ends)
    return dB_parts, sums


def outer(dS: Tensor, x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """See `skinny.outer`."""
    (tokens, width), ranks, R = x.shape, dS.shape[1], padded(dS.shape[1])
    BT, BI, warps, stages = SIZES["outer"](tokens, R)
    across = -(-width // BI)
    count, span = parts_of(tokens, BT, across)
    parts = x.new_empty(count, R, width, dtype=torch.float32)
    drops = bool(dropout) and seed is not None
    tiles.outer_parts[(across, count)](
        dS, x, parts, seed if drops else x, tokens, width, ranks, dS.stride(0), x.stride(0), dropout, span,
        DROPS=drops, FLOAT=INTERPRETED, BT=BT, BI=BI, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return parts[:, :ranks].sum(0)


def push_(dx: Tensor, dS: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> None:
    """See `skinny.push_`."""
    (tokens, width), ranks, R = dx.shape, dS.shape[1], padded(dS.shape[1])
    BT, BI, warps, stages = SIZES["push"](tokens, R)
    tiles.push[(-(-tokens // BT), -(-width // BI))](
        dx, dS, A, seed, tokens, width, ranks, dx.stride(0), dS.stride(0), A.stride(0), dropout,
        FLOAT=INTERPRETED, BT=BT, BI=BI, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
