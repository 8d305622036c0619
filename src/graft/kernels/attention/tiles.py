"""The prefix's share of a joint softmax as two Triton kernels: the formulas of `products`, each wide tensor read once and written once.

A program holds the prefix of one head, n and d rounded up to powers of two, and takes tiles of the text; sums are in float32. A prefix
that is too long to be held joins piece after piece. Sums over the text are cut into spans so that every processor has work, and the spans
are added in a fixed order: the same input gives the same bits. Under Triton's interpreter (TRITON_INTERPRET=1) the kernels run on a CPU.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PROCESSORS = 132  # of an H100; any number is right
HALVES = (torch.float16, torch.bfloat16)
HELD = 8192  # values of a key's prefix that a program holds: with more, registers spill on an H100


def takes(query: Tensor, kv: Tensor) -> bool:
    """Whether the kernels run on these q [B, H, T, d] and kv [2, 1 or B, K, n, d]."""
    runs = query.dtype in HALVES if query.is_cuda else INTERPRETED and query.dtype == torch.float32
    return runs and query.shape[3] <= 256 and query.stride(3) == kv.stride(4) == 1


@triton.jit
def prefix(kv, row, head, n, d, kv_side, kv_row, kv_head, kv_place, KIND: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """k_p and v_p [N, D] of one row and head in KIND's dtype, 0 beyond n and d."""
    place, column = tl.arange(0, N), tl.arange(0, D)
    inside = (place[:, None] < n) & (column[None, :] < d)
    start = kv + (row * kv_row + head * kv_head) + (place[:, None] * kv_place + column[None, :])
    k = tl.load(start, mask=inside, other=0.0).to(KIND)
    return k, tl.load(start + kv_side, mask=inside, other=0.0).to(KIND)


@triton.jit
def scores(q, k, n, scale, N: tl.constexpr):
    """S [BT, N] = s q k_p^T, -inf beyond n."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    return tl.where(tl.arange(0, N)[None, :] < n, s, float("-inf"))


@triton.jit
def join(
    q, kv, text, lse_text, out, lse, heads, shared, length, n, d, scale, q_row, q_head, q_place, kv_side, kv_row, kv_head, kv_place,
    text_row, text_head, text_place, out_row, out_head, out_place, BT: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """out and lse of text and prefix together, a tile of the text; `shared` heads read one key."""
    number, first = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * BT
    row, head = number // heads, number % heads
    lane, column = tl.arange(0, BT)[:, None], tl.arange(0, D)[None, :]
    place = first + tl.arange(0, BT)
    here = place < length
    inside = here[:, None] & (column < d)
    q_tile = tl.load(q + (row * q_row + head * q_head + first * q_place) + (lane * q_place + column), mask=inside, other=0.0)
    own = tl.load(text + (row * text_row + head * text_head + first * text_place) + (lane * text_place + column), mask=inside, other=0.0)
    before = tl.load(lse_text + number * length + place, mask=here, other=0.0)
    k, v = prefix(kv, row, head // shared, n, d, kv_side, kv_row, kv_head, kv_place, q_tile.dtype, N, D)
    s = scores(q_tile, k, n, scale, N)
    top = tl.maximum(tl.max(s, 1), before)
    both = top + tl.log(tl.sum(tl.exp(s - top[:, None]), 1) + tl.exp(before - top))
    w = tl.exp(s - both[:, None]).to(q_tile.dtype)
    joint = tl.dot(w, v, own.to(tl.float32) * tl.exp(before - both)[:, None], input_precision="ieee")
    tl.store(out + (row * out_row + head * out_head + first * out_place) + (lane * out_place + column), joint, mask=inside)
    tl.store(lse + number * length + place, both, mask=here)


@triton.jit
def differentiate(
    grad, q, kv, out, lse, dq_text, dq, parts, heads, shared, length, n, d, scale, span, q_row, q_head, q_place,
    kv_side, kv_row, kv_head, kv_place, text_row, text_head, text_place, out_row, out_head, out_place,
    TEXT: tl.constexpr, BT: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """dq of a span of the text, if TEXT, and the span's part of dk_p and dv_p; do, out and dq are laid out alike."""
    part, number = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = number // heads, number % heads
    lane, column, position = tl.arange(0, BT)[:, None], tl.arange(0, D)[None, :], tl.arange(0, N)[:, None]
    k, v = prefix(kv, row, head // shared, n, d, kv_side, kv_row, kv_head, kv_place, q.dtype.element_ty, N, D)
    dk, dv = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    q += row * q_row + head * q_head
    dq_text += row * text_row + head * text_head
    alike = row * out_row + head * out_head
    for step in range(0, span, BT):
        first = (part * span + step).to(tl.int64)
        place = first + tl.arange(0, BT)
        here = place < length
        inside = here[:, None] & (column < d)
        start, at = alike + first * out_place, lane * out_place + column
        q_tile = tl.load(q + first * q_place + (lane * q_place + column), mask=inside, other=0.0)
        do = tl.load(grad + start + at, mask=inside, other=0.0)
        D_t = tl.sum(do.to(tl.float32) * tl.load(out + start + at, mask=inside, other=0.0).to(tl.float32), 1)
        w = tl.exp(scores(q_tile, k, n, scale, N) - tl.load(lse + number * length + place, mask=here, other=float("inf"))[:, None])
        ds = (w * (tl.dot(do, tl.trans(v), input_precision="ieee") - D_t[:, None])).to(q_tile.dtype)
        dk = tl.dot(tl.trans(ds), q_tile, dk, input_precision="ieee")
        dv = tl.dot(tl.trans(w.to(do.dtype)), do, dv, input_precision="ieee")
        if TEXT:
            own = tl.load(dq_text + first * text_place + (lane * text_place + column), mask=inside, other=0.0).to(tl.float32)
            tl.store(dq + start + at, own + tl.dot(ds, k, input_precision="ieee") * scale, mask=inside)
    inside = (position < n) & (column < d)
    parts += (number * tl.num_programs(0) + part) * 2 * n * d
    tl.store(parts + position * d + column, dk * scale, mask=inside)
    tl.store(parts + n * d + position * d + column, dv, mask=inside)


def places(x: Tensor) -> tuple[int, int, int]:
    """The strides of rows, heads and places of x [B, H, T, d]."""
    return x.stride(0), x.stride(1), x.stride(2)


def strides(kv: Tensor) -> tuple[int, int, int, int]:
    """The strides of kv's sides, rows (0 where they share the prefix), heads and positions."""
    return kv.stride(0), kv.stride(1) if kv.shape[1] > 1 else 0, kv.stride(2), kv.stride(3)


def sizes(kv: Tensor, backward: bool) -> dict[str, int]:
    """Tiles, warps and stages of a kernel that holds kv [2, 1 or B, K, n, d]: those that spill no register on an H100."""
    N, D = (max(16, triton.next_power_of_2(size)) for size in kv.shape[3:])
    BT = 64 if not backward else 32 if D <= 128 else 16
    return {"BT": BT, "N": N, "D": D, "num_warps": 8 if backward and N * D > HELD // 2 else 4, "num_stages": 2}


def pieces(kv: Tensor) -> tuple[Tensor, ...]:
    """kv cut along n into what a program can hold."""
    return kv.split(min(128, HELD // max(16, triton.next_power_of_2(kv.shape[4]))), 3)


def joined(query: Tensor, kv: Tensor, text: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See `products.joined`."""
    rows, heads, length, d = query.shape
    lse = lse.contiguous()
    for piece in pieces(kv):
        out, both = query.new_empty(rows, length, heads, d).transpose(1, 2), torch.empty_like(lse)
        size, shape = sizes(piece, False), (heads, heads // kv.shape[2], length, piece.shape[3], d)
        with torch.cuda.device_of(query):
            join[(-(-length // size["BT"]), rows * heads)](
                query, piece, text, lse, out, both, *shape, scale, *places(query), *strides(piece), *places(text), *places(out), **size
            )
        text, lse = out, both
    return text, lse


def differentiated(
    grad: Tensor, query: Tensor, kv: Tensor, out: Tensor, lse: Tensor, dq: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor]:
    """See `products.differentiated`; grad and out are laid out alike."""
    found = []
    for piece in pieces(kv):
        dq, parts = differentiated_piece(grad, query, piece, out, lse, dq, scale)
        found.append(parts.sum((2,) if kv.shape[1] > 1 else (0, 2), keepdim=True)[:, :, 0])
    return dq, torch.cat(found, 3).permute(2, 0, 1, 3, 4)


def differentiated_piece(
    grad: Tensor, query: Tensor, kv: Tensor, out: Tensor, lse: Tensor, dq: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor]:
    """dq, and [B, K, heads of a key x spans, 2, n, d] whose sum is dkv, of a prefix that a program can hold."""
    rows, heads, length, d = query.shape
    shared, n, size = heads // kv.shape[2], kv.shape[3], sizes(kv, True)
    blocks = -(-length // size["BT"])
    span = -(-blocks // max(1, min(blocks, -(-4 * PROCESSORS // (rows * heads))))) * size["BT"]
    count = -(-length // span)
    parts = lse.new_empty(rows, kv.shape[2], shared * count, 2, n, d)
    more, text = torch.empty_like(out), out if dq is None else dq
    with torch.cuda.device_of(query):
        differentiate[(count, rows * heads)](
            grad, query, kv, out, lse, text, more, parts, heads, shared, length, n, d, scale, span,
            *places(query), *strides(kv), *places(text), *places(out), TEXT=dq is not None, **size,
        )  # fmt: skip
    return None if dq is None else more, parts
