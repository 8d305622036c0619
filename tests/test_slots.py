"""Many adapters' forms by kernels: under Triton's interpreter against plain torch, and in the engine with plain torch in their place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import graft
from graft.kernels import slots
from graft.kernels.slots import reference
from graft.serve import Room
from test_serve import GREEDY, NEW, adapter, alone, base, called, loaded, prompt

SERVED = (
    "lora", "lora_rows", "lora_embedding", "lora_bias", "dora", "dora_rows", "ia3", "houlsby", "pfeiffer", "parallel", "block", "bias",
    "lora+bias", "ia3+lora", "prefix", "prompt", "prefix+lora",
)  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """Kernels on any device, plain torch in their place; the modules that each launch had."""
    calls = []

    def run(stack, s, x, ys):
        calls.append(len(ys))
        assert s.shape == (len(ys[0]),)
        assert stack.A is None or (stack.A.shape[0] % 8 == 0 and stack.A.is_contiguous() and stack.B.is_contiguous())
        assert all(y.shape == (len(s), out) for y, out in zip(ys, stack.outs, strict=True))
        return [torch.cat(reference.run(stack, s, x, ys), 1).split(stack.outs, 1)[place] for place in range(len(ys))]

    monkeypatch.setattr(slots, "takes", lambda y: True)
    monkeypatch.setattr(slots, "run", run)
    return calls


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "qwen3"])
def test_rows_of_every_method_are_the_rows_alone(name, launched):
    rows = [(setting, prompt(length, length)) for length in (5, 11) for setting in (None, *SERVED)]
    with loaded(*SERVED, slots=5, room=Room(cached=4096, batch=24, requests=40, page=4), name=name) as engine:  # slots change hands
        for _ in range(2):
            handles = [engine.submit(ids, called(setting), GREEDY) for setting, ids in rows]
            for (setting, ids), handle in zip(rows, handles, strict=True):
                assert handle.result(60).ids == alone(setting, ids, NEW, 3, name), setting
        bands = engine.residents.bands
        assert bool(bands) == (name in ("llama", "qwen3"))
        for band in bands:
            assert band.stack is not None
            assert not band.ready
    assert {1, 2, 3} <= set(launched) or name in ("gpt2", "phi3")
    assert 1 in launched


def test_a_band_follows_its_packs(launched):
    """Packs grow, change hands and are trimmed; a module that no adapter touched until now joins."""
    with loaded(slots=4, room=Room(cached=2048, batch=64, requests=16, page=4)) as engine:
        for setting in ("prefix", "lora", "houlsby", "ia3", "dora", "bias"):
            engine.load(setting, adapter(setting))
            assert engine.submit(prompt(7), setting, GREEDY).result(60).ids == alone(setting, prompt(7)), setting
            assert engine.submit(prompt(7), None, GREEDY).result(60).ids == alone(None, prompt(7))
        for setting in ("lora", "dora"):
            engine.unload(setting)
        for setting in ("ia3", "bias", "houlsby"):
            assert engine.submit(prompt(9), setting, GREEDY).result(60).ids == alone(setting, prompt(9)), setting


def test_routed_rows_of_several_texts(launched, monkeypatch):
    adapted = graft.adapt(base(), graft.LoRA(r=4))
    adapted.add("other", adapter("lora"))
    adapted.route(["other", None])
    ids = torch.tensor([prompt(6), prompt(6, 1)])
    with torch.no_grad():
        found = adapted.model(input_ids=ids).logits
        count = len(launched)
        assert count
        monkeypatch.setattr(slots, "takes", lambda y: False)
        wanted = adapted.model(input_ids=ids).logits
    assert len(launched) == count
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_kernels_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("interpreted_slots.py")
    done = subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all agree" in done.stdout
