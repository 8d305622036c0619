"""The calls of the paged attention kernels (graft.kernels.attention.paged.tiles): grids and tiles, from shapes alone.

Under Triton's interpreter (TRITON_INTERPRET=1) the same kernels run on a CPU, in float32 throughout.
"""

import os
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from graft.kernels.attention.paged import tiles
from graft.kernels.attention.paged.batch import Batch
from graft.kernels.cards import on

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALVES = (torch.float16, torch.bfloat16)
PROCESSORS = 132  # of an H100; any number is right
FILL = 4  # programs that keep one processor busy with keys
MOST_PARTS = 32
SHORT = 256  # keys of which a part is not worth a second kernel
WIDEST = 256  # head dim
MANY = 512  # programs of single tokens from which smaller ones are faster
LANES = 64  # rows of a tile of a mixed batch: tokens times heads that share a key
TILES = {"few": (128, 4, 2), "many": (32, 4, 4), "mixed": (32, 4, 3)}
"""Keys a step, warps, stages: the fastest of four each on an H100, for 8 heads of keys of size 128 and 192 to 4,000 keys."""
FITTING: dict[tuple[str, int, torch.device], tuple[int, int, int]] = {}  # what `fitted` has found


def takes(q: Tensor) -> bool:
    """Whether the kernels run on these q [T, H, d]."""
    runs = q.dtype in HALVES if q.is_cuda else INTERPRETED and q.dtype in (*HALVES, torch.float32)
    return runs and q.shape[2] <= WIDEST


def parts_for(rows: int, kv_heads: int, longest: int) -> int:
    """Into how many parts to cut the keys of each row (a power of two), where the longest has so many."""
    wanted = FILL * PROCESSORS / (rows * kv_heads)
    parts = 1
    while 2 * parts <= wanted and 2 * parts * SHORT <= longest and parts < MOST_PARTS:
        parts *= 2
    return parts


def write(batch: Batch, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """New keys and values [T, K, d] into pages [pages, page, K, d]."""
    tokens, heads, d = k.shape
    with on(k):
        tiles.write[(tokens,)](
            k, v, k_pages, v_pages, batch.q_ends, batch.k_ends, batch.table, batch.rows, heads * d, k.stride(0), k.stride(1), v.stride(0),
            v.stride(1), k_pages.stride(1), batch.table.stride(0), k_pages.shape[1], HEAD=d, SINGLE=batch.single, ROWS=rounded(batch.rows),
            BLOCK=rounded(heads * d),
        )  # fmt: skip


def attend(batch: Batch, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float, cap: float = 0.0) -> Tensor:
    """out [T, H, d] of q [T, H, d]."""
    tokens, heads, d = q.shape
    groups = k_pages.shape[2]
    shared = heads // groups
    SHARED, parts = rounded(shared), batch.parts if batch.single else 1
    kind = "mixed" if not batch.single else "many" if batch.rows * groups * parts >= MANY else "few"
    BQ = max(1, (LANES if kind == "mixed" else 16) // SHARED)
    count = batch.rows if batch.single else tokens // BQ + batch.rows
    made = q.new_empty if batch.single else q.new_zeros
    out = made((tokens, heads, d)) if parts == 1 else q.new_empty((tokens, heads, parts, d), dtype=torch.float32)
    lse = out if parts == 1 else q.new_empty((tokens, heads, parts), dtype=torch.float32)

    def run(keys: int, warps: int, stages: int) -> None:
        tiles.attend[(count, groups, parts)](
            q, k_pages, v_pages, batch.q_ends, batch.k_ends, batch.table, out, lse, batch.rows, heads, shared, d, scale, cap or 1.0,
            q.stride(0), q.stride(1), k_pages.stride(1), k_pages.stride(2), batch.table.stride(0), k_pages.shape[1], BQ=BQ, SHARED=SHARED,
            BN=keys, D=max(16, rounded(d)), SINGLE=batch.single, ROWS=rounded(batch.rows), PARTS=parts, CAPPED=bool(cap),
            FLOAT=INTERPRETED, num_warps=warps, num_stages=stages,
        )  # fmt: skip

    with on(q):
        fitted(kind, d, q.device, run)
        if parts == 1:
            return out
        joined = q.new_empty((tokens, heads, d))
        tiles.combine[(tokens * heads,)](out, lse, joined, d, PARTS=parts, D=rounded(d), num_warps=2)
        return joined


def fitted(kind: str, d: int, device: torch.device, run: Callable[[int, int, int], None]) -> None:
    """Run with a tile of TILES or, where the card has too little shared memory for it, the first that fits of those with fewer keys."""
    keys, warps, stages = FITTING.get((kind, d, device), TILES[kind] if d <= 128 else (TILES[kind][0] // 2, TILES[kind][1], 2))
    while True:
        try:
            return run(keys, warps, stages)
        except tiles.OutOfResources:
            if keys <= 16:
                raise
            keys, stages = keys // 2, 2
            FITTING[kind, d, device] = keys, warps, stages


def rounded(count: int) -> int:
    """The power of two that is as large."""
    return int(triton.next_power_of_2(count))
