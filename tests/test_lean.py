"""Norms and rotations compiled by themselves: what they compute stays, and they are put back."""

import logging

import pytest
import torch

from graft.model import lean
from graft.model.lean import Lean
from graft.serve import Room, Sampling
from test_serve import loaded
from tiny import inputs, tiny

SMALL = Room(cached=512, batch=24, requests=8, page=4, lean=True)
PLAIN = Room(cached=512, batch=24, requests=8, page=4)


def forwards(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize(
    ("name", "norms", "rotations"), [("llama", 5, 2), ("qwen3", 9, 2), ("gemma2", 9, 2), ("gpt_neox", 0, 2), ("opt", 0, 0)]
)
def test_norms_and_rotations_are_found_by_what_they_are_and_torchs_own_are_left(name, norms, rotations):
    found = [module for module, _ in Lean(tiny(name), {"backend": "eager"}).found()]
    assert sum(map(lean.is_norm, found)) == norms
    assert len(found) == norms + rotations


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3"])
def test_what_is_compiled_computes_the_same_and_is_put_back(name):
    model, batch, graphs = tiny(name), {key: value[:1] for key, value in inputs(name).items()}, []

    def backend(graph, given):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        plain = model(**batch).logits
        made = Lean(model, {"backend": backend})
        made.attach()
        known = len(graphs)
        assert 0 < known <= 4 * len({type(each) for each in made.held})
        assert torch.equal(model(**batch).logits, plain)
        assert len(graphs) == known, "no number of tokens needs another graph"
        assert len(forwards(model)) == len(made.held)
        made.detach()
        assert not forwards(model)
        assert torch.equal(model(**batch).logits, plain)


def answers(room, *settings):
    with loaded(*settings, room=room) as engine:
        handles = [engine.submit([5, 9, 17, 4 + k], name, Sampling(max_tokens=6)) for k, name in enumerate([None, *settings])]
        found = [handle.result(60) for handle in handles]
    assert not forwards(engine.model)
    return found


def test_answers_are_the_same_with_adapters_in_the_batch(monkeypatch):
    monkeypatch.setattr(lean.Lean.__init__, "__defaults__", ({"backend": "eager"},))
    assert answers(SMALL, "houlsby", "lora") == answers(PLAIN, "houlsby", "lora")


def test_what_cannot_be_compiled_runs_as_it_was_and_says_so(monkeypatch, caplog):
    def broken(graph, given):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(lean.Lean.__init__, "__defaults__", ({"backend": broken},))
    with caplog.at_level(logging.WARNING, "graft"):
        assert answers(SMALL, "houlsby", "lora") == answers(PLAIN, "houlsby", "lora")
    assert "norms and rotations run uncompiled, which is slower: " in caplog.text
    assert "no compiler here" in caplog.text


@pytest.mark.slow  # a compiler of its own
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_halves_every_bit_stays():
    model, ids = tiny("llama", torch.bfloat16).eval(), torch.arange(9)[None]
    with torch.no_grad():
        plain, made = model(input_ids=ids).logits, Lean(model)
        made.attach()
        assert len(made.held) == 7
        assert torch.equal(model(input_ids=ids).logits, plain)
