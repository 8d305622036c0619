"""The skinny products as Triton kernels: each reads its wide operand once and takes its sums in float32.

Dropout keeps or drops a value by a hash of the seed and of its position, taken again wherever it is needed. What each kernel computes is
said in its docstring, who calls it in graft.kernels.affine.launch. This file can be read, but not run, where Triton is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

PRESENT = importlib.util.find_spec("triton") is not None
if PRESENT:
    import triton.language as tl
    from triton import jit
else:

    def jit(kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Without Triton, a kernel is only its text."""
        return kernel


@jit
def mixed(h):
    """A 32-bit hash of 32 bits: multiplications and shifts that leave no bit unstirred."""
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0x735A2D97
    return h ^ (h >> 15)


@jit
def kept(x, seed_ptr, row, column, width, dropout):
    """x where the hash of its place [row, column] says so, scaled; 0 elsewhere."""
    seed = mixed(tl.load(seed_ptr).to(tl.uint32))
    place = row.to(tl.uint32)[:, None] * width.to(tl.uint32) + column.to(tl.uint32)[None, :]
    drawn = (mixed(place ^ seed) >> 8).to(tl.float32) * (1.0 / (1 << 24))
    return tl.where(drawn >= dropout, x / (1 - dropout), 0.0).to(x.dtype)


@jit
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


@jit
def leave(total, tail, S, place, r, here, ranks, column, room, pitch, S_pitch, BT: tl.constexpr, R: tl.constexpr):
    """S[:, column + r] = tail[:, column + r] = total [BT, R]; the tail's columns from there on, up to `room`, are 0."""
    own = here & (r[None, :] < ranks)
    tl.store(tail + place * pitch + column + r[None, :], total, mask=own)
    tl.store(S + place * S_pitch + column + r[None, :], total, mask=own)
    for start in range(column + ranks, room, R):
        beyond = start + r[None, :]
        tl.store(tail + place * pitch + beyond, tl.zeros((BT, R), tl.float32), mask=here & (beyond < room))


@jit
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


@jit
def pull_parts(
    dY, S, B, y_0, y_1, y_2, dS_parts, dB_parts, sums, tokens, outs_0, outs_1, outs_2, r_0, r_1, r_2, end_0, end_1, total_outs,
    pitch, S_pitch, B_pitch, span, SUMS: tl.constexpr, FLOAT: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """dS_parts[o] [T, R] = dY B over o's tile of one map's outputs; dB_parts[t] [Σ out, R] = dY^T S over t's span of tokens; and with
    SUMS, sums[t] [Σ out] = Σ dY * y.
    """
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
    y = y_0
    if tile >= end_0:
        y = y_1
    if tile >= end_1:
        y = y_2
    dB, dots = tl.zeros((BO, R), tl.float32), tl.zeros((BT if SUMS else 1, BO if SUMS else 1), tl.float32)
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
        if SUMS:
            own_y = tl.load(y + place * outs + own[None, :], mask=here[:, None] & inside[None, :], other=0.0)
            dots += dy.to(tl.float32) * own_y.to(tl.float32)
    tl.store(dB_parts + (part * total_outs + out[:, None]).to(tl.int64) * R + r[None, :], dB, mask=inside[:, None])
    if SUMS:
        tl.store(sums + part * total_outs + out, tl.sum(dots, 0), mask=inside)


@jit
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


@jit
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


@jit
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


@jit
def norms(
    W, A, B, own, total, outs, width, ranks, pitch,
    FLOAT: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """total [out] = the root of own + 2 rowsum((W A^T) * B) + rowsum((B (A A^T)) * B), W read once; A and B lie without gaps.

    Both products of A are of A in W's dtype, and their sums in float32.
    """
    out, r, lane = tl.program_id(0) * BO + tl.arange(0, BO), tl.arange(0, R), tl.arange(0, BK)
    inside, present = out < outs, r < ranks
    cross, square = tl.zeros((BO, R), tl.float32), tl.zeros((R, R), tl.float32)
    for start in range(0, width, BK):
        column = start + lane
        real = column < width
        w = tl.load(W + out[:, None].to(tl.int64) * pitch + column[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        a = tl.load(A + r[None, :] * width + column[:, None], mask=present[None, :] & real[:, None], other=0.0)
        if FLOAT:
            w = w.to(tl.float32)
        a = a.to(w.dtype)
        cross = tl.dot(w, a, cross, input_precision="ieee")
        square = tl.dot(tl.trans(a), a, square, input_precision="ieee")
    b = tl.load(B + out[:, None] * ranks + r[None, :], mask=inside[:, None] & present[None, :], other=0.0)
    added = tl.sum(2 * cross * b + tl.dot(b, square, input_precision="ieee") * b, 1)
    tl.store(total + out, tl.sqrt(tl.maximum(tl.load(own + out, mask=inside, other=0.0) + added, 1.1754944e-38)), mask=inside)
