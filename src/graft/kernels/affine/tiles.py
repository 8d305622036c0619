"""The skinny products as Triton kernels: each reads its wide operand once and takes its sums in float32.

A sum over tokens (or over inputs) is cut into parts so that every processor has work; the parts are added in a fixed order by a second
kernel, so that the same input gives the same bits. Dropout keeps or drops a value by a hash of the seed and of its position, taken again
wherever it is needed. Under Triton's interpreter (TRITON_INTERPRET=1) the same kernels run on a CPU, in float32 throughout.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PROCESSORS = 132  # of an H100; any number is right
HALVES = (torch.float16, torch.bfloat16)
AT_ONCE = 3  # maps that one launch of `pull_parts` takes
SIZES = {
    "project": lambda tokens, R: (16 if tokens <= 4096 else 32, 128 if R <= 64 else 64 if R <= 256 else 32, 4, 4),
    "pull": lambda tokens, R: (64, 256 if R <= 32 else 128, 8, 3),
    "outer": lambda tokens, R: (64, 128, 4, 4) if R <= 64 else (64, 64, 8, 4),
    "push": lambda tokens, R: (64, 128, 4, 1),
}
"""Of each kernel, for so many tokens and ranks: tokens a tile, its other side, warps, stages; measured on an H100."""


def takes(value: Tensor) -> bool:
    """Whether the kernels run on this tensor."""
    return value.is_cuda and value.dtype in HALVES or INTERPRETED and value.dtype in (*HALVES, torch.float32)


def padded(ranks: int) -> int:
    """A width that tl.dot accepts: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(ranks))


@triton.jit
def mixed(h):
    """A 32-bit hash of 32 bits: multiplications and shifts that leave no bit unstirred."""
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0x735A2D97
    return h ^ (h >> 15)


@triton.jit
def kept(x, seed_ptr, row, column, width, dropout):
    """x where the hash of its place [row, column] says so, scaled; 0 elsewhere."""
    seed = mixed(tl.load(seed_ptr).to(tl.uint32))
    place = row.to(tl.uint32)[:, None] * width.to(tl.uint32) + column.to(tl.uint32)[None, :]
    drawn = (mixed(place ^ seed) >> 8).to(tl.float32) * (1.0 / (1 << 24))
    return tl.where(drawn >= dropout, x / (1 - dropout), 0.0).to(x.dtype)


@triton.jit
def project_parts(
    xs, A, parts, S, seed, tokens, width, ranks, room, pitch, A_pitch, dropout, span,
    DROPS: tl.constexpr, FLOAT: tl.constexpr, ALONE: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """parts[k] [T, R] = drop(x)[:, k's span] A[:, k's span]^T, or with one part alone, S itself and the tail."""
    row, part = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1)
    lane, r = tl.arange(0, BK), tl.arange(0, R)
    total = tl.zeros((BT, R), tl.float32)
    here = row[:, None] < tokens
    place = row[:, None].to(tl.int64)
    for step in range(0, span, BK):
        column = part * span + step + lane
        inside = column < width
        x = tl.load(xs + place * pitch + column[None, :], mask=here & inside[None, :], other=0.0)
        a = tl.load(A + r[None, :] * A_pitch + column[:, None], mask=(r[None, :] < ranks) & inside[:, None], other=0.0)
        if FLOAT:
            x, a = x.to(tl.float32), a.to(tl.float32)
        if DROPS:
            x = kept(x, seed, row, column, width, dropout)
        total = tl.dot(x, a, total, input_precision="ieee")
    if ALONE:
        leave(total, xs + width, S, place, r, here, ranks, 0, room, pitch, ranks, BT, R)
    else:
        tl.store(parts + (part * tokens + place) * R + r[None, :], total, mask=here)


@triton.jit
def leave(total, tail, S, place, r, here, ranks, column, room, pitch, S_pitch, BT: tl.constexpr, R: tl.constexpr):
    """S[:, column + r] = tail[:, column + r] = total [BT, R]; the tail's columns from there on, up to `room`, are 0."""
    own = here & (r[None, :] < ranks)
    tl.store(tail + place * pitch + column + r[None, :], total, mask=own)
    tl.store(S + place * S_pitch + column + r[None, :], total, mask=own)
    for start in range(column + ranks, room, R):
        beyond = start + r[None, :]
        tl.store(tail + place * pitch + beyond, tl.zeros((BT, R), tl.float32), mask=here & (beyond < room))


@triton.jit
def gather_parts(
    parts, tail, S, tokens, room, pitch, S_pitch, column, r_0, r_1, r_2, end_0, end_1, end_2, maps,
    BT: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """S and tail of each map's columns = Σ of its parts [T, R], from the end of the map before to its own end."""
    number = tl.program_id(1)
    row, r = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, R)
    first = tl.where(number == 0, 0, tl.where(number == 1, end_0, end_1))
    count = tl.where(number == 0, end_0, tl.where(number == 1, end_1, end_2)) - first
    ranks = tl.where(number == 0, r_0, tl.where(number == 1, r_1, r_2))
    column += tl.where(number == 0, 0, tl.where(number == 1, r_0, r_0 + r_1))
    here, place = row[:, None] < tokens, row[:, None].to(tl.int64)
    total = tl.zeros((BT, R), tl.float32)
    for part in range(count):
        total += tl.load(parts + ((first + part) * tokens + place) * R + r[None, :], mask=here, other=0.0)
    leave(total, tail, S, place, r, here, ranks, column, tl.where(number == maps - 1, room, 0), pitch, S_pitch, BT, R)


@triton.jit
def pull_parts(
    dY, S, B, dS_parts, dB_parts, tokens, outs_0, outs_1, outs_2, r_0, r_1, r_2, end_0, end_1, total_outs,
    pitch, S_pitch, B_pitch, span, FLOAT: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """dS_parts[o] [T, R] = dY B over o's tile of one map's outputs; dB_parts[t] [Σ out, R] = dY^T S over t's span of tokens."""
    tile, part = tl.program_id(0), tl.program_id(1)
    second, third = tile >= end_0, tile >= end_1
    outs = tl.where(third, outs_2, tl.where(second, outs_1, outs_0))
    ranks = tl.where(third, r_2, tl.where(second, r_1, r_0))
    column = tl.where(third, r_0 + r_1, tl.where(second, r_0, 0))
    base = tl.where(third, outs_0 + outs_1, tl.where(second, outs_0, 0))
    own = (tile - tl.where(third, end_1, tl.where(second, end_0, 0))) * BO + tl.arange(0, BO)
    out, r, lane = base + own, tl.arange(0, R), tl.arange(0, BT)
    inside = own < outs
    b = tl.load(B + out[:, None].to(tl.int64) * B_pitch + column + r[None, :], mask=inside[:, None] & (r[None, :] < ranks), other=0.0)
    if FLOAT:
        b = b.to(tl.float32)
    dB = tl.zeros((BO, R), tl.float32)
    for step in range(0, span, BT):
        row = part * span + step + lane
        here = row < tokens
        place = row[:, None].to(tl.int64)
        dy = tl.load(dY + place * pitch + out[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        s = tl.load(S + place * S_pitch + column + r[None, :], mask=here[:, None] & (r[None, :] < ranks), other=0.0)
        if FLOAT:
            dy, s = dy.to(tl.float32), s.to(tl.float32)
        dS = tl.dot(dy, b, input_precision="ieee")
        tl.store(dS_parts + (tile * tokens + place) * R + r[None, :], dS, mask=here[:, None])
        dB = tl.dot(tl.trans(dy), s, dB, input_precision="ieee")
    tl.store(dB_parts + (part * total_outs + out[:, None]).to(tl.int64) * R + r[None, :], dB, mask=inside[:, None])


@triton.jit
def outer_parts(
    dS, x, parts, seed, tokens, width, ranks, dS_pitch, pitch, dropout, span,
    DROPS: tl.constexpr, FLOAT: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """parts[t] [R, in] = dS^T drop(x) over t's span of tokens."""
    part = tl.program_id(1)
    column, r, lane = tl.program_id(0) * BI + tl.arange(0, BI), tl.arange(0, R), tl.arange(0, BT)
    inside = column < width
    total = tl.zeros((BI, R), tl.float32)
    for step in range(0, span, BT):
        row = part * span + step + lane
        here = row < tokens
        place = row[:, None].to(tl.int64)
        v = tl.load(x + place * pitch + column[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        s = tl.load(dS + place * dS_pitch + r[None, :], mask=here[:, None] & (r[None, :] < ranks), other=0.0)
        if FLOAT:
            v, s = v.to(tl.float32), s.to(tl.float32)
        if DROPS:
            v = kept(v, seed, row, column, width, dropout)
        total = tl.dot(tl.trans(v), s, total, input_precision="ieee")
    tl.store(parts + (part * R + r[None, :]).to(tl.int64) * width + column[:, None], total, mask=inside[:, None])


@triton.jit
def push(
    dx, dS, A, seed, tokens, width, ranks, pitch, dS_pitch, A_pitch, dropout,
    FLOAT: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """dx += drop'(dS A)."""
    row, column, r = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1) * BI + tl.arange(0, BI), tl.arange(0, R)
    here, inside, own = row[:, None] < tokens, column[None, :] < width, r < ranks
    s = tl.load(dS + row[:, None].to(tl.int64) * dS_pitch + r[None, :], mask=here & own[None, :], other=0.0)
    a = tl.load(A + r[:, None] * A_pitch + column[None, :], mask=own[:, None] & inside, other=0.0)
    if FLOAT:
        s, a = s.to(tl.float32), a.to(tl.float32)
    added = kept(tl.dot(s, a, input_precision="ieee"), seed, row, column, width, dropout)
    place = dx + row[:, None].to(tl.int64) * pitch + column[None, :]
    tl.store(place, tl.load(place, mask=here & inside, other=0.0).to(tl.float32) + added, mask=here & inside)


@triton.jit
def write_branches(
    buffer, A_0, A_1, A_2, B_0, B_1, B_2, outs_0, outs_1, outs_2, r_0, r_1, r_2, first_row, first_column, bottom, width, pitch,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each map's A [r, in] below the weights and its B [out, r] beside its own rows."""
    number = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    outs = tl.where(number == 0, outs_0, tl.where(number == 1, outs_1, outs_2))
    ranks = tl.where(number == 0, r_0, tl.where(number == 1, r_1, r_2))
    row = first_row + tl.where(number == 0, 0, tl.where(number == 1, outs_0, outs_0 + outs_1))
    column = first_column + tl.where(number == 0, 0, tl.where(number == 1, r_0, r_0 + r_1))
    A, B = A_0, B_0
    if number == 1:
        A, B = A_1, B_1
    if number == 2:
        A, B = A_2, B_2
    inside = place < ranks * width
    target = buffer + (bottom + column + place // width).to(tl.int64) * pitch + place % width
    tl.store(target, tl.load(A + place, mask=inside), mask=inside)
    inside = place < outs * ranks
    target = buffer + (row + place // ranks).to(tl.int64) * pitch + width + column + place % ranks
    tl.store(target, tl.load(B + place, mask=inside), mask=inside)


def write(buffer: Tensor, As: list[Tensor], Bs: list[Tensor]) -> None:
    """A_j [r_j, in] and B_j [out_j, r_j] into a pitched buffer (graft.kernels.affine.pitched)."""
    width, bottom = As[0].shape[1], sum(len(B) for B in Bs)
    row = column = 0
    for k in range(0, len(As), AT_ONCE):
        some_A, some_B = ([value.contiguous() for value in values[k : k + AT_ONCE]] for values in (As, Bs))
        outs, ranks, more = [len(B) for B in some_B], [len(A) for A in some_A], AT_ONCE - len(some_A)
        longest = max(value.numel() for value in some_A + some_B)
        write_branches[(-(-longest // 1024), len(some_A))](
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


def project_(xs: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """See `skinny.project_`."""
    tokens, (ranks, width), R = len(xs), A.shape, padded(A.shape[0])
    BT, BK, warps, stages = SIZES["project"](tokens, R)
    rows, room = -(-tokens // BT), xs.shape[1] - width
    count, span = (1, width) if rows >= PROCESSORS else parts_of(width, BK, rows)
    S = xs.new_empty(tokens, ranks)
    parts = xs.new_empty(count, tokens, R, dtype=torch.float32) if count > 1 else S
    drops = bool(dropout) and seed is not None
    project_parts[(rows, count)](
        xs, A, parts, S, seed if drops else xs, tokens, width, ranks, room, xs.stride(0), A.stride(0), dropout, span,
        DROPS=drops, FLOAT=INTERPRETED, ALONE=count == 1, BT=BT, BK=BK, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if count > 1:
        gather(parts, xs[:, width:], S, room, 0, [ranks], [count])
    return S


def gather(parts: Tensor, tail: Tensor, S: Tensor, room: int, column: int, ranks: list[int], ends: list[int]) -> None:
    """Add up parts [n, T, R], those before each end for one map, into S and the tail from `column` on."""
    BT, more = 64, AT_ONCE - len(ranks)
    gather_parts[(-(-len(S) // BT), len(ranks))](
        parts, tail, S, len(S), room, tail.stride(0), S.stride(0), column, *ranks, *[0] * more, *ends, *[ends[-1]] * more, len(ranks),
        BT=BT, R=parts.shape[2],
    )  # fmt: skip


def pull_(dys: Tensor, S: Tensor, B: Tensor, outputs: list[int], ranks: list[int]) -> tuple[Tensor, Tensor]:
    """See `skinny.pull_`."""
    total = sum(outputs)
    dS, dB = torch.empty_like(S), dys.new_empty(total, max(ranks), dtype=torch.float32)
    row = column = 0
    for k in range(0, len(outputs), AT_ONCE):
        outs, own = outputs[k : k + AT_ONCE], ranks[k : k + AT_ONCE]
        room = dys.shape[1] - total if k + AT_ONCE >= len(outputs) else 0
        pull_some(dys[:, row:], dys[:, total:], S[:, column:], B[row:, column:], dS, dB[row : row + sum(outs)], outs, own, room, column)
        row, column = row + sum(outs), column + sum(own)
    return dS, dB


def pull_some(
    dY: Tensor, tail: Tensor, S: Tensor, B: Tensor, dS: Tensor, dB: Tensor, outs: list[int], ranks: list[int], room: int, column: int
) -> None:
    """`pull_` of up to AT_ONCE maps whose outputs and ranks are the first of dY, S and B."""
    tokens, R, more = len(dY), padded(max(ranks)), AT_ONCE - len(outs)
    BT, BO, warps, stages = SIZES["pull"](tokens, R)
    ends = [sum(-(-n // BO) for n in outs[: k + 1]) for k in range(len(outs))]
    count, span = parts_of(tokens, BT, ends[-1])
    dS_parts = dY.new_empty(ends[-1], tokens, R, dtype=torch.float32)
    dB_parts = dY.new_empty(count, sum(outs), R, dtype=torch.float32)
    ends_of = [*ends, *[ends[-1]] * more]
    pull_parts[(ends[-1], count)](
        dY, S, B, dS_parts, dB_parts, tokens, *outs, *[0] * more, *ranks, *[0] * more, *ends_of[:2], sum(outs),
        dY.stride(0), S.stride(0), B.stride(0), span, FLOAT=INTERPRETED, BT=BT, BO=BO, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    gather(dS_parts, tail, dS, room, column, ranks, ends)
    torch.sum(dB_parts[:, :, : dB.shape[1]], 0, out=dB)


def outer(dS: Tensor, x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """See `skinny.outer`."""
    (tokens, width), ranks, R = x.shape, dS.shape[1], padded(dS.shape[1])
    BT, BI, warps, stages = SIZES["outer"](tokens, R)
    tiles = -(-width // BI)
    count, span = parts_of(tokens, BT, tiles)
    parts = x.new_empty(count, R, width, dtype=torch.float32)
    drops = bool(dropout) and seed is not None
    outer_parts[(tiles, count)](
        dS, x, parts, seed if drops else x, tokens, width, ranks, dS.stride(0), x.stride(0), dropout, span,
        DROPS=drops, FLOAT=INTERPRETED, BT=BT, BI=BI, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return parts[:, :ranks].sum(0)


def push_(dx: Tensor, dS: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> None:
    """See `skinny.push_`."""
    (tokens, width), ranks, R = dx.shape, dS.shape[1], padded(dS.shape[1])
    BT, BI, warps, stages = SIZES["push"](tokens, R)
    push[(-(-tokens // BT), -(-width // BI))](
        dx, dS, A, seed, tokens, width, ranks, dx.stride(0), dS.stride(0), A.stride(0), dropout,
        FLOAT=INTERPRETED, BT=BT, BI=BI, R=R, num_warps=warps, num_stages=stages,
    )  # fmt: skip
