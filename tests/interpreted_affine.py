"""The Triton kernels of the skinny products under Triton's interpreter, against torch's products; run as a process of its own."""

import itertools

import torch

from graft.kernels.affine import launch, norms, skinny

torch.use_deterministic_algorithms(True)  # memory that nobody has written to is NaN
SEED = torch.tensor(11)
CUT = {name: lambda length, R: (16, 32, 4, 1, 1000) for name in launch.SIZES}  # small tiles, and as many parts as there can be


def plain(operator, *args):
    """The operator by torch's products."""
    takes, launch.takes = launch.takes, lambda value: False
    try:
        return operator(*args)
    finally:
        launch.takes = takes


def agree(a, b, what):
    assert a.shape == b.shape, what
    if not a.numel():
        return
    gap = (a - b).abs().max().item() / max(1.0, b.abs().max().item())
    assert gap < 1e-5, f"{what}: {gap:.1e}"


def both(operator, mutated, *rest):
    """Results and the mutated tensor, by the kernel and by torch."""
    ours, theirs = mutated.clone(), mutated.clone()
    a, b = operator(ours, *rest), plain(operator, theirs, *rest)
    flat = [list(value) if isinstance(value, tuple) else [] if value is None else [value] for value in (a, b)]
    return [ours, *flat[0]], [theirs, *flat[1]]


def undropped():
    for tokens, inputs, outputs, ranks in itertools.product(
        (1, 70), (5, 150), ((7,), (300, 33), (9, 8, 7, 6)), ((3,), (20, 5), (1, 2, 3, 20))
    ):
        if len(outputs) != len(ranks):
            continue
        total, ranked, tail = sum(outputs), sum(ranks), 32
        A, B = torch.randn(ranked, inputs), torch.randn(total, ranked)
        xs, dys = torch.full((tokens, inputs + tail), torch.nan), torch.full((tokens, total + tail), torch.nan)
        xs[:, :inputs], dys[:, :total] = torch.randn(tokens, inputs), torch.randn(tokens, total)
        S = torch.randn(tokens, ranked)
        cases = {
            "project_": both(skinny.project_, xs, A, 0.0, None),
            "pull_": both(skinny.pull_, dys, S, B, [], list(outputs), list(ranks)),
            "pull_, scaled": both(skinny.pull_, dys, S, B, [torch.randn(tokens, n) for n in outputs], list(outputs), list(ranks)),
            "outer": ([skinny.outer(S, xs[:, :inputs], 0.0, None)], [plain(skinny.outer, S, xs[:, :inputs], 0.0, None)]),
        }
        for what, (ours, theirs) in cases.items():
            for a, b in zip(ours, theirs, strict=True):
                assert not b.isnan().any()
                agree(a, b, f"{what} at {tokens, inputs, outputs, ranks}")


def mask_of(x, rate, seed):
    """What x [T, in] is multiplied with, and the dropped x: read off `project_` with A the identity."""
    seen = skinny.project_(torch.cat([x, torch.zeros(len(x), x.shape[1] + 8)], 1), torch.eye(x.shape[1]), rate, seed)
    return torch.where(seen == 0, 0.0, 1 / (1 - rate)), seen


def dropped(inputs):
    """All four see one mask, of `project_`."""
    tokens, ranks, rate = 40, 24, 0.3
    x = torch.randn(tokens, inputs)
    mask, seen = mask_of(x, rate, SEED)
    assert 0.2 < (mask == 0).float().mean() < 0.4
    agree(seen, x * mask, "project_ with dropout")
    dS, A, dx = torch.randn(tokens, ranks), torch.randn(ranks, inputs), torch.randn(tokens, inputs)
    agree(skinny.outer(dS, x, rate, SEED), dS.t() @ (x * mask), "outer with dropout")
    expected = dx + (dS @ A) * mask
    skinny.push_(dx, dS, A, rate, SEED)
    agree(dx, expected, "push_")


def independent():
    """The share that is dropped, and the correlation of each value's fate with those of its neighbours and of other seeds'."""
    x, rate = torch.ones(1024, 64), 0.25
    fate = (mask_of(x, rate, SEED)[0] == 0).float()
    bound = 4 / fate.numel() ** 0.5
    assert abs(fate.mean() - rate) < bound * (rate * (1 - rate)) ** 0.5
    pairs = {f"{down} rows, {right} columns away": (fate[down:, right:], fate[: 1024 - down, : 64 - right])
             for down, right in ((0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (16, 0), (16, 16))}  # fmt: skip
    pairs["the two of one hash"] = fate[:, ::2], fate[:, 1::2]
    pairs["the two beside each other of two hashes"] = fate[:, 1:-1:2], fate[:, 2::2]
    pairs |= {f"seed {seed}": (fate, (mask_of(x, rate, torch.tensor(seed))[0] == 0).float()) for seed in (0, 10, 12, 11 + 2**16, 2**31 - 2)}
    for what, (a, b) in pairs.items():
        found = ((a - rate) * (b - rate)).mean().item() / (rate * (1 - rate))
        assert abs(found) < 4 / a.numel() ** 0.5, f"{what}: correlation {found:.3f}"


def written():
    for outputs, ranks in (((7,), (3,)), ((40, 33, 5, 6), (2, 5, 1, 4))):
        ours, theirs = torch.zeros(sum(outputs) + 16, 90 + 16), torch.zeros(sum(outputs) + 16, 90 + 16)
        As, Bs = [torch.randn(r, 90) for r in ranks], [torch.randn(outs, r) for outs, r in zip(outputs, ranks, strict=True)]
        skinny.write(ours, As, Bs)
        plain(skinny.write, theirs, As, Bs)
        assert torch.equal(ours, theirs)
        assert theirs.count_nonzero() == sum(value.numel() for value in As + Bs)


def normed():
    for outs, inputs, r in ((70, 150, 5), (33, 20, 32)):
        W, A, B = torch.randn(outs, inputs), torch.randn(r, inputs), torch.randn(outs, r)
        args = W, A, B, W.square().sum(1)
        agree(norms.compiled(*args) / 100, plain(norms.compiled, *args) / 100, "row_norms")


def repeated():
    """The same bits again, and counters at 0."""
    xs, A, S = torch.randn(70, 150 + 16), torch.randn(5, 150), torch.randn(70, 5)
    assert torch.equal(*(skinny.project_(xs, A, 0.0, None) for _ in range(2)))
    assert torch.equal(*(skinny.outer(S, xs, 0.0, None) for _ in range(2)))
    assert not launch.kept_counters(xs.device, 0).any()


def fitted():
    """On a card with less shared memory, each kernel's tiles shrink until they fit, and the next call takes those at once."""
    tried = []

    def run(value, *tile):
        tried.append(tile)
        if 2 * tile[0] * tile[1] * tile[3] > 4096:
            raise launch.tiles.OutOfResources(0, 0, "shared memory")

    for name in launch.SIZES:
        launch.fitted(name, 4096, 64, run, SEED)
        first = tried[-1]
        assert len(tried) > 1
        assert min(first[0], first[1] // 2) >= 16
        tried.clear()
        launch.fitted(name, 4096, 64, run, SEED)
        assert tried == [first]
        tried.clear()
    launch.FITTING.clear()


written()
independent()
fitted()
for sizes, widest in ((dict(launch.SIZES), launch.WIDEST), (CUT, 16)):  # some have more ranks than the widest
    launch.SIZES.update(sizes)
    launch.WIDEST = widest
    normed()
    undropped()
    dropped(24)
    dropped(71)
    repeated()
print("all agree")
