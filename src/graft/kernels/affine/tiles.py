"""The skinny products as Triton kernels: each reads its wide operand once and takes its sums in float32.

A sum is cut into parts so that every processor has work. Where a tile of the result has few parts, the last program to finish one adds
them up, always in the same order; where it has many (`pull`), a second kernel does. Dropout keeps or drops a value by a hash of the seed
and of its position, taken again wherever it is needed. What each kernel computes is said in its docstring, who calls it in
graft.kernels.affine.launch. This file can be read, but not run, where Triton is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

PRESENT = importlib.util.find_spec("triton") is not None
if PRESENT:
    import triton.language as tl
    from triton import OutOfResources as OutOfResources
    from triton import jit
else:

    class OutOfResources(Exception):  # type: ignore[no-redef]
        """What Triton raises where a card has less shared memory than a kernel's tiles take."""

    def jit(kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Without Triton, a kernel is only its text."""
        return kernel


@jit
def kept(seed_ptr, row, pair, width, threshold, N: tl.constexpr):
    """Which values [rows, N] of the columns from 2 * pair on stay: those whose 16 bits are not below the threshold, 0 to 2^16 - 1.

    Two neighbours share the 32 bits of one hash (Ellis's "lowbias32" with another pair of constants, whose every input bit turns every
    output bit with a chance of nearly one half), to which the seed is added before either multiplication.
    """
    seed, lane = tl.load(seed_ptr).to(tl.uint32), tl.arange(0, N)
    h = (row.to(tl.uint32) * ((width + 1) // 2))[:, None] + (pair + lane // 2).to(tl.uint32)[None, :]
    h = h ^ (seed * 0x9E3779B1)
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0x735A2D97 + seed
    h = h ^ (h >> 15)
    return (h << (16 * (lane % 2)).to(tl.uint32)[None, :]) >= (tl.cast(threshold, tl.uint32) << 16)  # the upper half, then the lower


@jit
def last(counter, count):
    """Whether this program is the last of `count` to come here, so that it may read what they stored; the counter ends at 0 again."""
    tl.debug_barrier()  # the stores of all threads come before the one thread's release
    found = tl.atomic_add(counter, 1, sem="acq_rel") == count - 1
    if found:
        tl.store(counter, 0)
    return found


@jit
def added(parts, stride, count, mask, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum [ROWS, COLUMNS] of what `parts` point to and of what lies every so many values behind it, read past the first cache."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(count):
        total += tl.load(parts, mask=mask, other=0.0, cache_modifier=".cg")
        parts += stride
    return total


@jit
def project(
    xs, tail, A, parts, counters, S, seed, tokens, width, ranks, room, pitch, A_pitch, S_pitch, threshold, scale, span,
    DROPS: tl.constexpr, FLOAT: tl.constexpr, ALONE: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """S [T, R] and the tail of xs = drop(x) A^T, of which parts[k] [T, R] is the sum over k's span of the columns."""
    tile, part, count = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row, lane, r = tile * BT + tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, R)
    total = tl.zeros((BT, R), tl.float32)
    here = row[:, None] < tokens
    place = row[:, None].to(tl.int64)
    for start in range(part * span, part * span + span, BK):
        column = start + lane
        inside = column < width
        x = tl.load(xs + place * pitch + column[None, :], mask=here & inside[None, :], other=0.0)
        a = tl.load(A + r[None, :] * A_pitch + column[:, None], mask=(r[None, :] < ranks) & inside[:, None], other=0.0)
        if FLOAT:
            x, a = x.to(tl.float32), a.to(tl.float32)
        if DROPS:
            x = tl.where(kept(seed, row, start // 2, width, threshold, BK), x, 0.0)
        total = tl.dot(x, a, total, input_precision="ieee")
    total *= scale
    if ALONE:
        leave(total, tail, S, place, r, here, ranks, 0, room, pitch, S_pitch, BT, R)
    else:
        own = parts + place * R + r[None, :]
        tl.store(own + (part * tokens).to(tl.int64) * R, total, mask=here)
        if last(counters + tile, count):
            total = added(own, tokens * R, count, here, BT, R)
            leave(total, tail, S, place, r, here, ranks, 0, room, pitch, S_pitch, BT, R)


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
def pull(
    dY, S, B, y_0, y_1, y_2, dS_parts, dB_parts, sums_parts, tokens, outs_0, outs_1, outs_2, r_0, r_1, r_2, end_0, end_1, total_outs,
    pitch, S_pitch, B_pitch, span, SUMS: tl.constexpr, FLOAT: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, R: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """dS_parts[o] [T, R] = dY B over o's tile of one map's outputs; dB_parts[t] [Σ out, R] = dY^T S over t's span of tokens; and with
    SUMS, sums_parts[t] [Σ out] = Σ dY * y.
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
    dB, dots = tl.zeros((BO, R), tl.float32), tl.zeros((16, BO), tl.float32)
    for start in tl.range(part * span, part * span + span, BT, num_stages=STAGES):  # said here, loads that no dot takes are made ahead too
        row = start + lane
        here = row < tokens
        place = row[:, None].to(tl.int64)
        dy = tl.load(dY + place * pitch + out[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        s = tl.load(S + place * S_pitch + column + r[None, :], mask=here[:, None] & (r[None, :] < ranks), other=0.0)
        if SUMS:
            own_y = tl.load(y + place * outs + own[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        if FLOAT:
            dy, s = dy.to(tl.float32), s.to(tl.float32)
        dS = tl.dot(dy, b, input_precision="ieee")
        tl.store(dS_parts + (tile * tokens + place) * R + r[None, :], dS, mask=here[:, None])
        dB = tl.dot(tl.trans(dy), s, dB, input_precision="ieee")
        if SUMS:
            dots += tl.sum(tl.reshape(dy.to(tl.float32) * own_y.to(tl.float32), (BT // 16, 16, BO)), 0)
    tl.store(dB_parts + (part * total_outs + out[:, None]).to(tl.int64) * R + r[None, :], dB, mask=inside[:, None])
    if SUMS:
        tl.store(sums_parts + part * total_outs + out, tl.sum(dots, 0), mask=inside)


@jit
def finish(
    dS_parts, dB_parts, sums_parts, tail, dS, dB, sums, tokens, room, pitch, dS_pitch, dB_pitch, column, r_0, r_1, r_2, end_0, end_1, end_2,
    maps, total_outs, spans, SUMS: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """What `pull` left in parts: the first programs add up dS and the tail of dY, map after map, the others dB and the sums."""
    blocks = tl.cdiv(tokens, BLOCK)
    number, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    r = tl.arange(0, R)
    if number < maps:
        row = block * BLOCK + tl.arange(0, BLOCK)
        first = tl.where(number == 0, 0, tl.where(number == 1, end_0, end_1))
        count = tl.where(number == 0, end_0, tl.where(number == 1, end_1, end_2)) - first
        ranks = tl.where(number == 0, r_0, tl.where(number == 1, r_1, r_2))
        column += tl.where(number == 0, 0, tl.where(number == 1, r_0, r_0 + r_1))
        here, place = row[:, None] < tokens, row[:, None].to(tl.int64)
        total = added(dS_parts + (first * tokens + place) * R + r[None, :], tokens * R, count, here, BLOCK, R)
        leave(total, tail, dS, place, r, here, ranks, column, tl.where(number == maps - 1, room, 0), pitch, dS_pitch, BLOCK, R)
    else:
        out = (tl.program_id(0) - maps * blocks) * BLOCK + tl.arange(0, BLOCK)
        inside = out < total_outs
        total = added(dB_parts + out[:, None].to(tl.int64) * R + r[None, :], total_outs * R, spans, inside[:, None], BLOCK, R)
        tl.store(dB + out[:, None].to(tl.int64) * dB_pitch + r[None, :], total, mask=inside[:, None] & (r[None, :] < dB_pitch))
        if SUMS:
            dots = added((sums_parts + out)[None, :], total_outs, spans, inside[None, :], 1, BLOCK)
            tl.store((sums + out)[None, :], dots, mask=inside[None, :])


@jit
def outer(
    dS, x, parts, counters, dA, seed, tokens, width, ranks, dS_pitch, pitch, threshold, scale, span,
    DROPS: tl.constexpr, FLOAT: tl.constexpr, ALONE: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """dA [R, in] = dS^T drop(x), of which parts[t] [in, R] is the sum over t's span of tokens."""
    tile, part, count = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column, r, lane = tile * BI + tl.arange(0, BI), tl.arange(0, R), tl.arange(0, BT)
    inside = column < width
    total = tl.zeros((BI, R), tl.float32)
    for start in range(part * span, part * span + span, BT):
        row = start + lane
        here = row < tokens
        place = row[:, None].to(tl.int64)
        v = tl.load(x + place * pitch + column[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        s = tl.load(dS + place * dS_pitch + r[None, :], mask=here[:, None] & (r[None, :] < ranks), other=0.0)
        if FLOAT:
            v, s = v.to(tl.float32), s.to(tl.float32)
        if DROPS:
            v = tl.where(kept(seed, row, tile * (BI // 2), width, threshold, BI), v, 0.0)
        total = tl.dot(tl.trans(v), s, total, input_precision="ieee")
    total *= scale
    target, mask = dA + r[None, :] * width + column[:, None], inside[:, None] & (r[None, :] < ranks)
    if ALONE:
        tl.store(target, total, mask=mask)
    else:
        own = parts + column[:, None].to(tl.int64) * R + r[None, :]
        tl.store(own + (part * width).to(tl.int64) * R, total, mask=inside[:, None])
        if last(counters + tile, count):
            tl.store(target, added(own, width * R, count, inside[:, None], BI, R), mask=mask)


@jit
def push(
    dx, dS, A, seed, tokens, width, ranks, pitch, dS_pitch, A_pitch, threshold, scale,
    FLOAT: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """dx += drop'(dS A)."""
    row, column, r = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1) * BI + tl.arange(0, BI), tl.arange(0, R)
    here, inside, own = row[:, None] < tokens, column[None, :] < width, r < ranks
    s = tl.load(dS + row[:, None].to(tl.int64) * dS_pitch + r[None, :], mask=here & own[None, :], other=0.0)
    a = tl.load(A + r[:, None] * A_pitch + column[None, :], mask=own[:, None] & inside, other=0.0)
    if FLOAT:
        s, a = s.to(tl.float32), a.to(tl.float32)
    mask = kept(seed, row, tl.program_id(1) * (BI // 2), width, threshold, BI)
    change = tl.where(mask, tl.dot(s, a, input_precision="ieee") * scale, 0.0)
    place = dx + row[:, None].to(tl.int64) * pitch + column[None, :]
    tl.store(place, tl.load(place, mask=here & inside, other=0.0).to(tl.float32) + change, mask=here & inside)


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
    W, A, B, own, total, outs, width, ranks, pitch, FLOAT: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """total [out] = the root of own + 2 rowsum((W A^T) * B) + rowsum((B (A A^T)) * B), never 0, W read once; A and B lie without gaps.

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
    change = tl.sum(2 * cross * b + tl.dot(b, square, input_precision="tf32x3") * b, 1)  # to 1e-6
    norm = tl.sqrt(tl.maximum(tl.load(own + out, mask=inside, other=0.0) + change, 1.1754944e-38))
    tl.store(total + out, norm, mask=inside)
