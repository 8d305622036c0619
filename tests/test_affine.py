"""Linear maps with low-rank branches: every layout and every kernel against the plain version, values and gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graft.kernels.affine import LAYOUTS, Pitched
from graft.kernels.affine.norms import row_norms
from graft.kernels.affine.reference import linears
from graft.kernels.affine.skinny import drop

CASES = {
    "one": (7, (5,), (3,), (True,)),
    "query, key, value": (32, (48, 16, 16), (4, 4, 4), (False, True, False)),
    "odd, ranks that differ": (33, (17, 70, 5), (1, 19, 2), (True, False, True)),
}
"""in, out_j, r_j, whether biased."""


def made(case, dtype, rows=(3, 11), seed=0, scaled=False):
    inputs, outputs, ranks, biased = CASES[case]
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, kind=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)

    master = torch.promote_types(dtype, torch.float32)
    weights = [random(outs, inputs) / inputs**0.5 for outs in outputs]
    biases = [random(outs) if has else None for outs, has in zip(outputs, biased, strict=True)]
    pairs = [(random(r, inputs, kind=master), random(outs, r, kind=master)) for outs, r in zip(outputs, ranks, strict=True)]
    if scaled:
        pairs = [(A, B, random(len(B), kind=master)) for A, B in pairs]
    return random(*rows, inputs), weights, biases, [(*pair, None)[:3] for pair in pairs], [random(*rows, outs) for outs in outputs]


@pytest.fixture
def nan_filled():
    """Memory that nobody has written to is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def gradients(run, x, pairs, grads, needs_x=True):
    x = x.clone().requires_grad_(needs_x)
    pairs = [tuple(value if value is None else value.clone().requires_grad_() for value in pair) for pair in pairs]
    ys = run(x, pairs)
    leaves = [value for pair in pairs for value in pair if value is not None]
    found = torch.autograd.grad(ys, ([x] if needs_x else []) + leaves, grads)
    return [*ys, *found]


def laid(layout, weights, biases, pairs, dropout, seed):
    group = LAYOUTS[layout](weights, [len(pair[0]) for pair in pairs])
    if isinstance(group, Pitched):
        group.write(pairs)
    return lambda x, pairs: group.run(x, biases, pairs, dropout, seed)


def agree(ours, theirs, bound):
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        gap = (a.double() - b.double()).abs().max().item() / b.double().abs().max().item()
        assert gap <= bound, f"tensor {number}: relative gap {gap:.1e} > {bound:.0e}"


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_layouts_are_the_plain_version_to_a_rounding(case, layout, dropout, scaled, nan_filled):
    x, weights, biases, pairs, grads = made(case, torch.float64, scaled=scaled)
    seed = torch.tensor(5) if dropout else None
    run = laid(layout, weights, biases, pairs, dropout, seed)
    plain = gradients(lambda x, pairs: linears(x, weights, biases, pairs, dropout, seed), x, pairs, grads)
    agree(gradients(run, x, pairs, grads), plain, 1e-13)
    agree(gradients(run, x, pairs, grads, needs_x=False), plain[: len(grads)] + plain[len(grads) + 1 :], 1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_as_close_to_the_truth_as_the_plain_version(layout, nan_filled):
    """Gradients of the masters come back in float32, from sums that were not rounded on the way where a kernel can help it."""
    x, weights, biases, pairs, grads = made("query, key, value", torch.bfloat16, rows=(4, 64))
    exact = [[None if v is None else v.double() for v in values] for values in (weights, biases)]
    doubles = [(A.to(torch.bfloat16).double(), B.to(torch.bfloat16).double(), None) for A, B, _ in pairs]
    truth = gradients(lambda x, pairs: linears(x, *exact, pairs), x.double(), doubles, [g.double() for g in grads])
    run = laid(layout, weights, biases, pairs, 0.0, None)
    ours = gradients(run, x, pairs, grads)
    for value, master in zip(ours[len(grads) + 1 :], [v for A, B, _ in pairs for v in (A, B)], strict=True):
        assert value.dtype == torch.float32
        assert value.shape == master.shape
    agree([value.double() for value in ours], truth, 1e-2)


def test_norms_of_rows_are_those_of_the_dense_sum_and_a_row_of_zeros_scales_by_nothing():
    W, A, B = (torch.randn(shape, dtype=torch.float64) for shape in ((30, 20), (4, 20), (30, 4)))
    W[3] = B[3] = 0
    norms = row_norms(W, A, B, W.square().sum(1))
    wanted = (W + B @ A).norm(dim=1)
    assert ((norms - wanted).abs() / wanted.clamp_min(1)).max() < 1e-13
    assert 0 < norms[3] < 1e-100


def test_a_share_of_the_values_is_dropped_and_the_mean_kept():
    x = torch.ones(400, 50)
    dropped = drop(x, 0.3, torch.tensor(1))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert 0.28 < (dropped == 0).float().mean() < 0.32
    assert not torch.equal(dropped, drop(x, 0.3, torch.tensor(2)))
    assert drop(x, 0.0, None) is x


def test_a_pitched_buffer_holds_the_weights_as_they_were():
    _, weights, _, pairs, _ = made("query, key, value", torch.bfloat16)
    group = LAYOUTS["pitched"](weights, [4, 4, 4])
    group.write(pairs)
    for view, weight in zip(group.views(), weights, strict=True):
        assert torch.equal(view, weight)
    assert group.buffer.shape == (80 + 16, 32 + 16)


def test_kernels_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("interpreted_affine.py")
    done = subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all agree" in done.stdout
