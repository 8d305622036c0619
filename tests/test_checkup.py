"""`graft doctor --kernels` finds nothing where all is right, and what is wrong where it is not."""

import pytest
import torch

from graft import checkup
from graft.model.adapted import Adapted


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(checkup, "KINDS", {name: checkup.KINDS[name] for name in ("lora", "prefix")})


@pytest.mark.parametrize("halves", [True, False])
def test_nothing_is_found_where_all_is_right(monkeypatch, halves):
    monkeypatch.setattr(checkup, "computes_bf16", lambda device: halves)
    found = list(checkup.checkup("cpu"))
    assert [check.name for check in found] == ["kernels: lora", "kernels: prefix", "kernels: serving"]
    assert {check.status for check in found} == {"ok"}
    assert all(("off plain float32; rounding explains up to" in check.found) and not check.way_out for check in found)


def test_a_kernel_that_computes_something_else_is_found(monkeypatch):
    fuse = Adapted.fuse

    def wrong(adapted):
        with torch.no_grad():
            for value in adapted.parameters():
                value.mul_(1.2)
        return fuse(adapted)

    monkeypatch.setattr(Adapted, "fuse", wrong)
    found = {check.name: check for check in checkup.checkup("cpu")}
    assert {name: check.status for name, check in found.items()} == {
        "kernels: lora": "failed", "kernels: prefix": "failed", "kernels: serving": "ok",
    }  # fmt: skip
    assert "TrainConfig(fuse=False)" in found["kernels: lora"].way_out


def test_what_does_not_run_at_all_is_said(monkeypatch):
    def broken(*given, **more):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(checkup, "Engine", broken)
    check = list(checkup.checkup("cpu"))[-1]
    assert (check.name, check.status, check.found) == ("kernels: serving", "failed", "RuntimeError: no such kernel")
