"""The Triton kernels of paged attention under Triton's interpreter, against plain torch; run as a process of its own."""

import torch

from graft.kernels.attention import paged
from graft.kernels.attention.paged import launch, reference

torch.use_deterministic_algorithms(True)  # memory that nobody has written to is NaN
SHAPES = (  # heads, heads of keys, head dim, page, (tokens of each request, keys before them)
    (4, 2, 16, 4, ((1, 0), (1, 3), (1, 70), (1, 131))),
    (3, 1, 24, 5, ((1, 12), (0, 0), (0, 0))),
    (8, 8, 40, 16, ((1, 600),)),
    (4, 1, 256, 8, ((1, 40), (1, 7))),
    (4, 2, 16, 4, ((1, 9), (17, 0), (5, 66), (0, 0))),
    (6, 2, 80, 16, ((40, 3), (1, 0))),
    (2, 2, 16, 32, ((130, 64),)),
)
SPARE = 3  # tokens behind the last request's, and pages that are nobody's


def batch_of(spans, page):
    """A batch and how many pages it needs; each request's pages lie in a random order, the table holds -1 beyond them."""
    lengths = [length for length, _ in spans]
    keys = [length + before if length else 0 for length, before in spans]
    pages = [-(-count // page) for count in keys]
    order = torch.randperm(sum(pages) + SPARE).int()
    table = torch.full((len(spans), max(pages) + 1), -1, dtype=torch.int32)
    for row, count in enumerate(pages):
        table[row, :count] = order[sum(pages[:row]) : sum(pages[: row + 1])]
    ends = [torch.tensor([0, *counts]).cumsum(0).int() for counts in (lengths, keys)]
    return paged.Batch(*ends, table, single=max(lengths) == 1), len(order)


def cache(count, page, heads, d, batch):
    """Keys and values [pages, page, K, d]: NaN, but for what the batch's requests had before."""
    made = torch.full((2, count, page, heads, d), torch.nan)
    for row, first, end, length in batch.requests():
        place = torch.arange(length - (end - first))
        slot = batch.table[row, place // page].long() * page + place % page
        made.flatten(1, 2)[:, slot] = torch.randn(2, len(place), heads, d)
    return made


def check(heads, groups, d, page, spans, cap, parts):
    batch, count = batch_of(spans, page)
    batch = paged.Batch(batch.q_ends, batch.k_ends, batch.table, batch.single, parts)
    tokens = max(int(batch.q_ends[-1]), batch.rows) + (0 if batch.single else SPARE)
    q, k, v = (torch.randn(n, tokens, d).transpose(0, 1) for n in (heads, groups, groups))
    ours = cache(count, page, groups, d, batch)
    theirs = ours.clone()
    assert launch.takes(q)
    launch.write(batch, k, v, *ours)
    reference.write(batch, k, v, *theirs)
    assert torch.equal(ours.nan_to_num(9.0), theirs.nan_to_num(9.0))
    found, wanted = (part.attend(batch, q, *theirs, 0.3, cap) for part in (launch, reference))
    assert torch.isfinite(wanted).all()
    gap = ((found - wanted).norm() / wanted.norm()).item()
    assert gap < 1e-5, f"{heads, groups, d, page, spans, cap, parts}: {gap:.1e}"


if __name__ == "__main__":
    assert launch.INTERPRETED
    torch.manual_seed(0)
    for shape in SHAPES:
        single = max(length for length, _ in shape[-1]) == 1
        for cap, parts in ((0.0, 1), (5.0, 4 if single else 1)):
            check(*shape, cap, parts)
    print("all agree")
