"""The Triton kernels of many adapters' forms under Triton's interpreter, against plain torch; run as a process of its own."""

import dataclasses

import torch

from graft.forms import ACTIVATIONS, Affine
from graft.kernels.slots import GROUP, Stack, launch, reference
from graft.pack import Pack

torch.use_deterministic_algorithms(True)  # memory that nobody has written to is NaN
ACTS = tuple(enumerate(ACTIVATIONS))
CASES = (  # tokens, inputs, outputs of each module, (slot, rank, activation) of the columns of each module, spare columns
    (1, 24, (40,), ((1, 3, 0),), 2),
    (5, 1100, (33,), ((1, 8, 0), (2, 17, 1), (4, 5, 2), (3, 4, 3), (6, 2, 4), (7, 2, 5), (8, 1, 6)), 5),
    (70, 130, (64, 20, 20), ((2, 8, 0), (69, 33, 0), (130, 16, 3), (5, 2, 0)), 0),
    (150, 64, (200, 7), ((1, 64, 0), (3, 1, 2)), 3),
    (33, 16, (130,), (), 0),
    (2, 16, (8200,), ((1, 3, 0),), 0),
    (40, 20, (12, 30), tuple((slot, 64, slot % 3) for slot in range(1, 30)), 9),
    (70, 20, (12, 30), tuple((slot, 40, 0) for slot in range(1, 30, 3)), 9),
)


def stack_of(inputs, outs, spec, spare, slots=140):
    """A stack whose columns lie in a random order, and whose spare ones hold NaN in A."""
    owners = [slot for slot, rank, _ in spec for _ in range(-(-rank // GROUP))] + [-1] * spare
    codes = [code for _, rank, code in spec for _ in range(-(-rank // GROUP))] + [0] * spare
    table = dict(c=torch.rand(slots, sum(outs)) + 0.5, b=torch.randn(slots, sum(outs)))
    table["c"][0], table["b"][0] = 1, 0
    if not owners:
        return Stack(outs, **table)
    orders = [torch.randperm(len(owners)) for _ in outs]
    of, act = (torch.cat([torch.tensor(values)[order] for order in orders]).repeat_interleave(GROUP) for values in (owners, codes))
    A, a = torch.randn(len(of), inputs) / inputs**0.5, torch.randn(len(of))
    A[of < 0] = a[of < 0] = torch.nan
    B = torch.randn(sum(outs), GROUP * len(owners))
    for place, order in enumerate(orders):
        first = sum(outs[:place])
        B[first : first + outs[place], (torch.tensor(owners)[order] < 0).repeat_interleave(GROUP)] = 0
    acts = tuple((code, name) for code, name in ACTS if code and code in codes)
    return Stack(outs, A=A, B=B, a=a if acts else None, of=of, act=act, acts=acts, **table)


def check(tokens, inputs, outs, spec, spare):
    stack, x = stack_of(inputs, outs, spec, spare), torch.randn(tokens, inputs)
    ys = [torch.randn(tokens, size + 3)[:, :size] for size in outs]
    for s in (
        torch.randint(0, 9, (tokens,)),
        64 + torch.randint(0, 9, (tokens,)),
        torch.full((tokens,), spec[0][0] if spec else 1),
        torch.zeros(tokens, dtype=torch.long),
    ):
        found, wanted = launch.run(stack, s, x, ys), reference.run(stack, s, x, ys)
        for ours, theirs, y in zip(found, wanted, ys, strict=True):
            assert torch.isfinite(theirs).all()
            gap = ((ours - theirs).norm() / theirs.norm()).item()
            assert gap < 1e-5, f"{tokens, inputs, outs, spec}: {gap:.1e}"
            assert s.any() or torch.equal(ours, y)


def check_parts():
    """A stack without c, without b, and with neither."""
    whole = stack_of(24, (40, 12), ((1, 3, 0), (2, 70, 2)), 1)
    s, x, ys = torch.randint(0, 4, (20,)), torch.randn(20, 24), [torch.randn(20, 40), torch.randn(20, 12)]
    for none in ({"c": None}, {"b": None}, {"c": None, "b": None}, {"a": None}):
        stack = dataclasses.replace(whole, **none)
        for ours, theirs in zip(launch.run(stack, s, x, ys), reference.run(stack, s, x, ys), strict=True):
            gap = ((ours - theirs).norm() / theirs.norm()).item()
            assert gap < 1e-5, f"{none}: {gap:.1e}"


def check_joined(tokens, inputs, outs, spec, spare, biased):
    """The products of the base and the forms on them, of few tokens; some have a bias."""
    stack, x = stack_of(inputs, outs, spec, spare), torch.randn(tokens, inputs)
    maps = [
        (torch.randn(size, inputs) / inputs**0.5, torch.randn(size) if biased & 1 << place else None) for place, size in enumerate(outs)
    ]
    assert launch.joins(stack, x, maps)
    ys = [torch.nn.functional.linear(x, *one) for one in maps]
    for s in (torch.randint(0, 9, (tokens,)), torch.full((tokens,), spec[0][0]), torch.zeros(tokens, dtype=torch.long)):
        for ours, theirs in zip(launch.joined(stack, s, x, maps), reference.run(stack, s, x, ys), strict=True):
            assert torch.isfinite(theirs).all()
            gap = ((ours - theirs).norm() / theirs.norm()).item()
            assert gap < 1e-5, f"{tokens, inputs, outs, spec}: {gap:.1e}"
    assert not launch.joins(stack, x[:, : inputs - 16], maps), "a step of inputs is whole"
    assert not launch.joins(stack, x, [(value.t().contiguous().t(), bias) for value, bias in maps])
    assert not launch.joins(stack, torch.zeros(65, inputs), maps)


def check_behind(tokens, inputs, out, spec, read, spare):
    """Columns that read y beside those that read x, which are of other slots."""
    own, later = stack_of(inputs, (out,), spec, spare), stack_of(out, (out,), read, spare)
    first = -(-(0 if own.of is None else len(own.of)) // 64) * 64
    more = first - (0 if own.of is None else len(own.of))
    none = torch.full((more,), -1)
    join = lambda a, pad, b: torch.cat([*([] if a is None else [a]), pad, b])  # noqa: E731
    stack = Stack(
        (out,), A=own.A, B=torch.cat([*([] if own.B is None else [own.B]), torch.zeros(out, more), later.B], 1),
        a=join(own.a if own.a is not None or own.of is None else torch.zeros(len(own.of)), torch.zeros(more), later.a),
        of=join(own.of, none, later.of), act=join(own.act, torch.zeros(more, dtype=torch.long), later.act), c=own.c, b=later.b,
        acts=later.acts, behind=later.A, first=first,
    )  # fmt: skip
    x, y = torch.randn(tokens, inputs), torch.randn(tokens, out)
    for s in (torch.randint(0, 9, (tokens,)), torch.full((tokens,), read[0][0]), torch.zeros(tokens, dtype=torch.long)):
        (ours,), (theirs,) = launch.run(stack, s, x, [y]), reference.run(stack, s, x, [y])
        assert torch.isfinite(theirs).all()
        gap = ((ours - theirs).norm() / theirs.norm()).item()
        assert gap < 1e-5, f"{tokens, inputs, out, spec, read}: {gap:.1e}"


def check_packs():
    """Packs whose last branch has gone, and packs that scale inputs alone."""
    s, x, y, c = torch.tensor([1, 2, 0]), torch.randn(3, 6), torch.randn(3, 5), torch.rand(5) + 0.5
    scaling, emptied = (Pack(3, torch.zeros(1)) for _ in range(2))
    scaling.load(1, Affine(i=torch.rand(6)))
    assert torch.equal(scaling(s, x, y), y)
    emptied.load(1, Affine(A=torch.randn(2, 6), B=torch.randn(5, 2)))
    emptied.load(2, Affine(c=c))
    emptied.free(1)
    assert emptied.trim()
    assert torch.allclose(emptied(s, x, y), torch.stack([y[0], c * y[1], y[2]]))


if __name__ == "__main__":
    assert launch.INTERPRETED
    torch.manual_seed(0)
    assert launch.SHRINK[32][0][1][1] * 2 * launch.SHRINK[32][0][1][4] <= CASES[1][1], "no sum is cut into parts"
    check(*CASES[1])  # with counters of its own
    launch.keep(torch.device("cpu"))
    for case in CASES:
        check(*case)
    check_behind(5, 1100, 33, ((1, 8, 0), (2, 17, 0)), ((3, 5, 1), (4, 9, 2)), 1)
    check_behind(70, 40, 400, ((1, 33, 0),), ((3, 64, 1),), 0)
    check_behind(2, 24, 50, (), ((3, 7, 1), (5, 2, 1)), 0)
    check_joined(5, 512, (40, 12, 33), ((1, 3, 0), (2, 70, 2), (3, 5, 4)), 1, 0b101)
    check_joined(33, 256, (4100, 20), ((1, 8, 0), (2, 17, 1)), 3, 0b10)
    check_joined(64, 128, (16400,), ((4, 8, 3),), 0, 0)
    check_packs()
    check_parts()
    (kept,) = launch.KEPT.values()
    launch.keep(torch.device("cpu"))
    assert launch.KEPT[kept.device, 0] is kept, "a recorded graph may use it"
    assert not kept.any()
    assert launch.counters(kept, 3) is kept
    print("all agree")
