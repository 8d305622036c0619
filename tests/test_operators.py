"""Operators of ours keep what they promise the dispatcher and the compiler: shapes, what they write to, memory that is no argument's."""

import pytest
import torch
from torch.library import opcheck

from graft.kernels.affine import lowering, norms, skinny
from graft.kernels.nf4 import unpack  # noqa: F401
from graft.kernels.operators import LIBRARY, operator

T, IN, OUT, R, TAIL = 5, 8, 6, 3, 16
X, A, B, S = torch.randn(T, IN), torch.randn(R, IN), torch.randn(OUT, R), torch.randn(T, R)
SEED = torch.tensor(3)
CALLS = {
    "once": (lowering.once, (torch.randn(4),)),
    "row_norms": (norms.compiled, (torch.randn(OUT, IN), A, B, torch.rand(OUT))),
    "beside": (skinny.beside, ([X, torch.randn(T, 2)], TAIL)),
    "dropped": (skinny.dropped, (X.clone().requires_grad_(), 0.5, SEED)),
    "project_": (skinny.project_, (torch.randn(T, IN + TAIL), A, 0.0, None)),
    "project_ dropped": (skinny.project_, (torch.randn(T, IN + TAIL), A, 0.5, SEED)),
    "pull_": (skinny.pull_, (torch.randn(T, OUT + TAIL), S, B, [], [OUT], [R])),
    "pull_ with sums": (skinny.pull_, (torch.randn(T, OUT + TAIL), S, B, [torch.randn(T, OUT)], [OUT], [R])),
    "outer": (skinny.outer, (S, X, 0.0, None)),
    "push_": (skinny.push_, (X, S, A, 0.5, SEED)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_is_what_it_says(name):
    work, args = CALLS[name]
    assert set(opcheck(work, args).values()) == {"SUCCESS"}


def test_every_operator_is_tried():
    ours = {name.removeprefix("graft::").partition(".")[0] for name in LIBRARY._op_defs} - {"tested_wrong"}
    assert ours == {call.name().removeprefix("graft::") for call, _ in CALLS.values()} | {"unpacked"}  # in test_nf4_fused


def test_a_wrong_promise_is_found():
    bad = operator("tested_wrong", lambda x: x.new_empty(x.shape[0] + 1))(wrong)
    with pytest.raises(Exception, match=r"[Ss]hape"):
        opcheck(bad, (torch.ones(3),))


def wrong(x: torch.Tensor) -> torch.Tensor:
    """Not of the shape that was promised."""
    return x.clone()
