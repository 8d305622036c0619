"""The Triton kernels of a prefix's attention under Triton's interpreter, against plain products; run as a process of its own."""

import torch

from graft.kernels.attention import joint, products, reference, tiles

torch.use_deterministic_algorithms(True)  # memory that nobody has written to is NaN
SHAPES = (  # rows, heads, heads of keys, text, head dim, prefix, rows of the prefix
    (1, 1, 1, 2, 8, 1, 1),
    (2, 4, 2, 70, 16, 5, 1),
    (3, 4, 4, 130, 24, 20, 3),
    (2, 6, 2, 64, 40, 17, 2),
    (2, 2, 1, 40, 256, 40, 2),
    (1, 2, 1, 70, 100, 130, 1),
)
SCALE = 0.3


def agree(a, b, what):
    assert a.shape == b.shape, what
    gap = ((a - b).norm() / b.norm()).item()
    assert gap < 1e-5, f"{what}: {gap:.1e}"


def check(rows, heads, groups, length, dim, n, prefixes):
    """Both kernels alone, then the whole of joint attention through them."""
    text = [torch.randn(rows, length, count, dim).transpose(1, 2) for count in (heads, groups, groups, heads, heads)]
    query, key, value, grad, out = text
    prefix, lse = torch.randn(prefixes, n, 2, groups, dim).permute(2, 0, 3, 1, 4), torch.randn(rows, heads, length)
    dq = torch.randn(rows, heads, length, dim)
    assert joint.part(query, prefix) is tiles
    ours, theirs = (part.joined(query, prefix, out, lse, SCALE) for part in (tiles, products))
    for a, b in zip(ours, theirs, strict=True):
        agree(a, b, "joined")
    for given in (dq, None):
        ours, theirs = (part.differentiated(grad, query, prefix, joint.rows_first(out), lse, given, SCALE) for part in (tiles, products))
        agree(ours[1], theirs[1], "dkv")
        if given is None:
            assert ours[0] is None
        else:
            agree(ours[0], theirs[0], "dq")
    values = [part.detach().requires_grad_() for part in (query, key, value, prefix)]
    ours, theirs = (run(*values, SCALE) for run in (joint.prefixed, reference.prefixed))
    agree(ours, theirs, "out")
    for a, b in zip(*(torch.autograd.grad(result, values, grad) for result in (ours, theirs)), strict=True):
        agree(a, b, "gradients")


if __name__ == "__main__":
    assert tiles.INTERPRETED
    torch.manual_seed(0)
    for shape in SHAPES:
        check(*shape)
    print("all agree")
