"""Paged attention as Triton kernels: keys and values are read where they lie, page by page, and nothing is gathered or masked before.

`write` puts a batch's new keys and values into their pages. `attend` takes a tile of one request's queries, all heads that share a key
together, so that a key is read once for them; a row of the tile is (token, head). Of a row with few queries the keys are cut into parts,
and `combine` joins these by their log-sum-exps, in a fixed order. Sums are in float32. Grids depend on shapes alone, so that a recorded
graph serves any lengths: programs that have nothing to do end at once. Unused places of pages are never read: they may hold NaN.
"""

import triton
import triton.language as tl
from triton import OutOfResources as OutOfResources

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(1 << 30)


@triton.jit
def row_of(ends, rows, number, BQ: tl.constexpr, ROWS: tl.constexpr):
    """The row whose tile of BQ tokens is the `number`-th, if each row begins a tile: row r's first is ends[r] // BQ + r."""
    row = tl.arange(0, ROWS)
    first = tl.load(ends + row, mask=row < rows, other=NOWHERE) // BQ + row
    return tl.sum(((first <= number) & (row < rows)).to(tl.int32)) - 1


@triton.jit
def write(
    k, v, k_pages, v_pages, q_ends, k_ends, table, rows, width, k_token, k_head, v_token, v_head, page_place, table_row, page,
    HEAD: tl.constexpr, SINGLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Token t's keys and values [K, d] into its request's page; a token that is nobody's stays out."""
    token = tl.program_id(0)
    if SINGLE:
        row = token
    else:
        every = tl.arange(0, ROWS)
        last = tl.load(q_ends + 1 + every, mask=every < rows, other=NOWHERE)
        row = tl.sum((last <= token).to(tl.int32))
    if row < rows:
        end = tl.load(q_ends + row + 1)
        if token < end:
            place = tl.load(k_ends + row + 1) - tl.load(k_ends + row) - (end - token)
            own = tl.load(table + row.to(tl.int64) * table_row + place // page).to(tl.int64) * page + place % page
            column = tl.arange(0, BLOCK)
            here = column < width
            head, inner = column // HEAD, column % HEAD
            start = own * page_place + column
            tl.store(k_pages + start, tl.load(k + token.to(tl.int64) * k_token + head * k_head + inner, mask=here), mask=here)
            tl.store(v_pages + start, tl.load(v + token.to(tl.int64) * v_token + head * v_head + inner, mask=here), mask=here)


@triton.jit
def attend(
    q, k_pages, v_pages, q_ends, k_ends, table, out, lse, rows, heads, shared, d, scale, cap, q_token, q_head, page_place,
    page_head, table_row, page, BQ: tl.constexpr, SHARED: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, SINGLE: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, CAPPED: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """out [T, H, d], or with parts out [T, H, PARTS, d] and lse [T, H, PARTS] (base 2) in float32."""
    tile, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if SINGLE:
        row, first = tile, tile
        begin, end = tl.load(q_ends + row), tl.load(q_ends + row + 1)
        mine = end - begin
    else:
        row = row_of(q_ends, rows, tile, BQ, ROWS)
        begin, end = tl.load(q_ends + row), tl.load(q_ends + row + 1)
        first = begin + (tile - (begin // BQ + row)) * BQ
        mine = tl.minimum(end - first, BQ)
    lane, column = tl.arange(0, BQ * SHARED), tl.arange(0, D)
    token, head = first + lane // SHARED, group * shared + lane % SHARED
    exists = (lane % SHARED < shared) & (lane // SHARED < mine)
    if mine > 0:
        length = tl.load(k_ends + row + 1) - tl.load(k_ends + row)
        place = length - (end - token)
        seen = length - (end - first) + mine  # keys that the tile's last query sees
        span = tl.cdiv(tl.cdiv(seen, BN), PARTS) * BN
        low = part * span
        high = tl.minimum(seen, low + span)
        start = q + token.to(tl.int64)[:, None] * q_token + head[:, None] * q_head + column[None, :]
        queries = tl.load(start, mask=exists[:, None] & (column < d)[None, :], other=0.0)
        if FLOAT:
            queries = queries.to(tl.float32)
        top = tl.full([BQ * SHARED], float("-inf"), tl.float32)
        total = tl.zeros([BQ * SHARED], tl.float32)
        summed = tl.zeros([BQ * SHARED, D], tl.float32)
        pages = table + row.to(tl.int64) * table_row
        for n in range(low, high, BN):
            key = n + tl.arange(0, BN)
            there = key < high
            own = tl.load(pages + key // page, mask=there, other=0).to(tl.int64) * page + key % page
            offset = own[:, None] * page_place + group * page_head + column[None, :]
            inside = there[:, None] & (column < d)[None, :]
            keys = tl.load(k_pages + offset, mask=inside, other=0.0)
            values = tl.load(v_pages + offset, mask=inside, other=0.0)
            if FLOAT:
                keys, values = keys.to(tl.float32), values.to(tl.float32)
            s = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            if CAPPED:
                s = cap * (1 - 2 / (tl.exp2(s * (2.8853900817779268 / cap)) + 1))  # cap tanh(s / cap)
            s = tl.where((key[None, :] <= place[:, None]) & there[None, :], s * LOG2E, float("-inf"))
            higher = tl.maximum(top, tl.max(s, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weight, kept = tl.exp2(s - safe[:, None]), tl.exp2(top - safe)
            total = total * kept + tl.sum(weight, 1)
            summed = summed * kept[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
            top = higher
        result = summed / tl.where(total > 0, total, 1.0)[:, None]
        spot = (token.to(tl.int64) * heads + head) * PARTS + part
        tl.store(out + spot[:, None] * d + column[None, :], result.to(out.dtype.element_ty), mask=exists[:, None] & (column < d)[None, :])
        if PARTS > 1:
            tl.store(lse + spot, tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf")), mask=exists)
    elif SINGLE:
        spot = (tile.to(tl.int64) * heads + head) * PARTS + part
        nobody = (lane < shared)[:, None] & (column < d)[None, :]
        tl.store(out + spot[:, None] * d + column[None, :], tl.zeros([BQ * SHARED, D], out.dtype.element_ty), mask=nobody)
        if PARTS > 1:
            tl.store(lse + spot, tl.zeros([BQ * SHARED], tl.float32), mask=lane < shared)


@triton.jit
def combine(partial, lse, out, d, PARTS: tl.constexpr, D: tl.constexpr):
    """out [T H, d] of partial [T H, PARTS, d] by their lse [T H, PARTS]."""
    number = tl.program_id(0).to(tl.int64)
    part, column = tl.arange(0, PARTS), tl.arange(0, D)
    own = tl.load(lse + number * PARTS + part)
    weight = tl.exp2(own - tl.max(own, 0))
    values = tl.load(partial + (number * PARTS + part)[:, None] * d + column[None, :], mask=(column < d)[None, :], other=0.0)
    result = tl.sum(values * (weight / tl.sum(weight, 0))[:, None], 0)
    tl.store(out + number * d + column, result.to(out.dtype.element_ty), mask=column < d)
