"""A run that was cut off and goes on is the run that was not: the same tensors, curve and counts, to the bit."""

import contextlib
import copy
import dataclasses
import json
import logging
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import graft
from graft.errors import TrainingError
from graft.train import TrainConfig, loop, unfinished
from test_train import examples, run
from tiny import tiny

SETUP = TrainConfig(learning_rate=1e-2, max_steps=9, batch_size=4, warmup=0.2, save_every=2)
WAYS = {
    "lora": (graft.LoRA(r=2, dropout=0.2), {}),
    "lora accumulated": (graft.LoRA(r=2), {"grad_accum": 2, "schedule": "cosine", "weight_decay": 0.1}),
    "whole modules": (graft.Selective("last", k=1), {"clip": 0.1}),
    "one tensor": (graft.Prompt(n=2, init_embeds="random"), {}),
    "dora": (graft.DoRA(r=2), {}),
    "patient": (graft.IA3(), {"eval_every": 2, "patience": 3}),
}


class CutError(Exception):
    """A run ends here."""


def fresh(method):
    return graft.adapt(tiny("llama", torch.float32), method, seed=1)


def values(adapted):
    return [value.detach().clone() for value in adapted.parameters()]


def after(step, what):
    def heard(told):
        if told.step == step:
            what()

    return heard


def cut():
    raise CutError


def interrupt():
    signal.raise_signal(signal.SIGINT)


def trained(method, config, **more):
    adapted = fresh(method)
    return run(adapted, config, examples(14), examples(5, seed=3), **more), values(adapted)


@pytest.mark.parametrize(
    ("way", "step", "how", "kept"),
    [(way, 5, cut, 4) for way in WAYS] + [(way, 3, interrupt, 3) for way in WAYS] + [("lora", 8, cut, 6), ("lora", 1, interrupt, 1)],
)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut_off(tmp_path, way, step, how, kept):
    (method, changes), path = WAYS[way], tmp_path / "deep" / "state.safetensors"
    config = dataclasses.replace(SETUP, **changes)
    whole, expected = trained(method, dataclasses.replace(config, save_every=0))
    with pytest.raises(KeyboardInterrupt if how is interrupt else CutError):
        trained(method, config, state=path, on_step=after(step, how))
    with safe_open(path, "pt") as file:
        assert f'"step": {kept},' in file.metadata()["graft"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    heard = []
    state = torch.get_rng_state()
    again, found = trained(method, config, state=path, on_step=heard.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert [told.step for told in heard] == list(range(kept + 1, 10))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for name in ("steps", "tokens", "curve", "stopped", "validation_loss", "best_step"):
        assert getattr(again, name) == getattr(whole, name), name
    assert again.seconds > 0


@pytest.mark.parametrize(("call", "owed"), [(3, True), (4, False)])
def test_a_run_that_was_stopped_while_it_was_evaluated_owes_the_evaluation(tmp_path, monkeypatch, call, owed):
    (method, changes), path = WAYS["patient"], tmp_path / "state"
    config = dataclasses.replace(SETUP, **changes, save_every=100)
    whole, expected = trained(method, dataclasses.replace(config, save_every=0))
    calls, batch_of = [], loop.batch_of

    def heard(*given):
        calls.append(given)
        if len(calls) == call:  # of two an evaluation
            interrupt()
        return batch_of(*given)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "batch_of", heard)
        with pytest.raises(KeyboardInterrupt):
            trained(method, config, state=path)
    with safe_open(path, "pt") as file:
        kept = json.loads(file.metadata()["graft"])
    assert (kept["step"], kept["owed"] is not None) == (4, owed)
    again, found = trained(method, config, state=path)
    assert again.curve == whole.curve
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", ["lora", "patient"])
def test_a_run_that_had_ended_trains_no_more(tmp_path, way):
    (method, changes), path, heard = WAYS[way], tmp_path / "state", []
    config = dataclasses.replace(SETUP, **changes, save_every=100)
    whole, expected = trained(method, dataclasses.replace(config, save_every=0))
    with pytest.raises(KeyboardInterrupt, match="training stopped after step"):
        trained(method, config, state=path, on_step=after(whole.steps, interrupt))
    again, found = trained(method, config, state=path, on_step=heard.append)
    assert not heard
    assert (again.steps, again.stopped, again.curve, again.best_step) == (whole.steps, whole.stopped, whole.curve, whole.best_step)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_a_killed_run_left_is_removed(tmp_path):
    for name in (".state.abc.tmp", ".state.def.tmp", ".another.abc.tmp", "state.tmp"):
        (tmp_path / name).write_bytes(b"half")
    run(fresh(graft.LoRA(r=2)), SETUP, state=tmp_path / "state")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".another.abc.tmp", "state", "state.tmp"]


def test_states_in_8_bits_go_on_too(tmp_path):
    pytest.importorskip("bitsandbytes")
    config = dataclasses.replace(SETUP, optimizer="adamw8bit", learning_rate=1e-3)
    method = graft.Selective("full")  # tensors of 4096 values and more have states in 8 bits
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    wide, rows, found = LlamaForCausalLM(LlamaConfig(**sizes)), examples(14), []
    for cuts in ((), (5,)):
        for step in (*cuts, None):
            adapted = graft.adapt(copy.deepcopy(wide), method, seed=1)
            with contextlib.suppress(CutError):
                state = {"state": tmp_path / "state"} if cuts else {}
                run(adapted, config if cuts else dataclasses.replace(config, save_every=0), rows, on_step=after(step, cut), **state)
        found.append(values(adapted))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with safe_open(tmp_path / "state", "pt") as file:
        assert "U8" in {file.get_slice(name).get_dtype() for name in file.keys() if name.startswith("optimizer.")}  # noqa: SIM118


def test_runs_can_be_cut_off_again_and_again(tmp_path):
    method, _ = WAYS["lora"]
    _, expected = trained(method, dataclasses.replace(SETUP, save_every=0))
    for step in (2, 3, 5, 8):
        with pytest.raises(KeyboardInterrupt):
            trained(method, SETUP, state=tmp_path / "state", on_step=after(step, interrupt))
    _, found = trained(method, dataclasses.replace(SETUP, save_every=0), state=tmp_path / "state")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 2e-2}, "a run with learning_rate 0.01: run that again, or delete it to begin anew"),
        ({"max_steps": 12, "seed": 3}, r"a run with max_steps 9, seed 0"),
        ({"method": graft.LoRA(r=3)}, "other tensors"),
        ({"about": {"method": "another"}}, "a run with method one: run that again"),
        ({"rows": 13}, "a run with other rows"),
    ],
)
def test_the_state_of_another_run_is_refused_and_stays(tmp_path, change, said):
    path, change = tmp_path / "state", dict(change)
    with pytest.raises(CutError):
        run(fresh(graft.LoRA(r=2)), SETUP, examples(14), state=path, about={"method": "one"}, on_step=after(4, cut))
    before = path.read_bytes()
    other = {name: change.pop(name, usual) for name, usual in (("method", graft.LoRA(r=2)), ("about", {"method": "one"}), ("rows", 14))}
    config = dataclasses.replace(SETUP, **change)
    with pytest.raises(TrainingError, match=said):
        run(fresh(other["method"]), config, examples(other["rows"]), state=path, about=other["about"])
    assert path.read_bytes() == before


def test_what_is_no_state_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(TrainingError, match=r"state is not the state of a run \(.*\): delete it to begin anew"):
        run(fresh(graft.LoRA(r=2)), SETUP, state=path)
    for metadata in (None, {"graft": "{}"}, {"graft": "[]"}, {"graft": "{"}):
        save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(TrainingError, match="is not the state of a run"):
            run(fresh(graft.LoRA(r=2)), SETUP, state=path)


def test_what_cannot_be_kept_is_said_before_the_first_step(tmp_path):
    with pytest.raises(TrainingError, match="save_every needs a file to save to"):
        run(fresh(graft.LoRA(r=2)), SETUP)
    with pytest.raises(TrainingError, match="the state of paged_adamw cannot be kept: choose adamw or adamw8bit, or train without"):
        run(fresh(graft.LoRA(r=2)), dataclasses.replace(SETUP, optimizer="paged_adamw"), state=tmp_path / "state")


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch, caplog):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished, "save_file", full)
    with caplog.at_level(logging.WARNING, "graft"):
        result = run(fresh(graft.LoRA(r=2)), SETUP, state=tmp_path / "state")
    assert result.steps == 9
    assert "the state of the run after step 2 could not be kept: [Errno 28] No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())
