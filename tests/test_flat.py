"""Trained tensors as one: views of it while it lasts, the same training, memory of their own afterwards."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from graft import LoRA, adapt
from graft.errors import TrainingError
from graft.train import flat as module
from graft.train.flat import ALIGNED, flat
from test_train import SETUP, examples, llama, run


def some():
    return [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (7,), (2, 2, 2))]


def test_tensors_and_gradients_are_views_of_one_and_are_given_back():
    tensors = some()
    before = [value.detach().clone() for value in tensors]
    with flat(tensors) as (whole,):
        assert all(torch.equal(x, y) for x, y in zip(before, tensors, strict=True))
        assert all(value.data_ptr() % ALIGNED == whole.data_ptr() % ALIGNED for value in tensors)
        sum((value * (k + 1)).sum() for k, value in enumerate(tensors)).backward()
        assert float(whole.grad.sum()) == 15 + 2 * 7 + 3 * 8
        torch.optim.SGD([whole], lr=1.0).step()
        for k, (value, was) in enumerate(zip(tensors, before, strict=True)):
            assert torch.allclose(value, was - (k + 1))
        own = whole.untyped_storage().data_ptr()
    assert all(value.untyped_storage().data_ptr() != own and value.grad is None for value in tensors)
    assert len({value.untyped_storage().data_ptr() for value in tensors}) == 3
    assert all(torch.allclose(value, was - (k + 1)) for k, (value, was) in enumerate(zip(tensors, before, strict=True)))


@pytest.mark.parametrize("how", ["unwanted", "many bytes", "unlike", "one"])
def test_others_are_stepped_as_they_are(how, monkeypatch):
    tensors = some()[:1] if how == "one" else some()
    if how == "many bytes":
        monkeypatch.setattr(module, "MOST", 4 * 30 - 1)
    if how == "unlike":
        tensors[0].data = tensors[0].data.double()
    with flat(tensors, how != "unwanted") as stepped:
        assert all(x is y for x, y in zip(stepped, tensors, strict=True))
        assert all(value.grad is None for value in tensors)


@pytest.mark.parametrize("accum", [1, 3])
def test_the_same_training_with_fewer_kernels(monkeypatch, accum):
    found, curves = [], []
    for most in (1 << 30, 0):
        monkeypatch.setattr(module, "MOST", most)
        host = adapt(llama("nothing").model, LoRA(r=4))
        config = replace(SETUP, grad_accum=accum, max_steps=8, weight_decay=0.1, clip=0.05, eval_every=2, patience=9)
        curves.append(run(host, config, validation=examples(3, seed=1)).curve)
        found.append(host.parameters())
    for one, each in zip(*curves, strict=True):
        assert one["train_loss"] == pytest.approx(each["train_loss"], rel=1e-6)
        assert (one["validation_loss"] or 0.0) == pytest.approx(each["validation_loss"] or 0.0, rel=1e-6)
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)
    assert len({value.untyped_storage().data_ptr() for value in found[0]}) == len(found[0])


def test_a_run_that_fails_gives_the_tensors_back(monkeypatch):
    host = adapt(llama("nothing").model, LoRA(r=4))
    before = [value.detach().clone() for value in host.parameters()]
    with pytest.raises(TrainingError, match="no token"):
        run(host, SETUP, rows=[replace(example, supervised=len(example.ids)) for example in examples()])
    assert all(torch.equal(x, y) and x.grad is None for x, y in zip(host.parameters(), before, strict=True))
    assert len({value.untyped_storage().data_ptr() for value in host.parameters()}) == len(before)
