"""Many adapters' forms by kernels: under Triton's interpreter against plain torch, and in the engine with plain torch in their place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import graft
from graft.errors import AdapterError
from graft.kernels import slots
from graft.kernels.slots import reference
from graft.model.bands import Band
from graft.model.chains import Chain
from graft.serve import Engine, Room
from graft.serve.batching import manager
from test_serve import GREEDY, NEW, adapter, alone, base, called, loaded, prompt

SERVED = (
    "lora", "lora_rows", "lora_embedding", "lora_bias", "dora", "dora_rows", "ia3", "houlsby", "pfeiffer", "parallel", "block", "bias",
    "lora+bias", "ia3+lora", "prefix", "prompt", "prefix+lora",
)  # fmt: skip

FEW = 12  # tokens whose products are in the same launch here


@pytest.fixture
def launched(monkeypatch):
    """Kernels on any device, plain torch in their place; the modules that each launch had, and whether with their products."""
    calls = []

    def run(stack, s, x, ys):
        calls.append(len(ys))
        assert s.shape == (len(ys[0]),)
        assert stack.A is None or (stack.A.shape[0] % 8 == 0 and stack.A.is_contiguous() and stack.B.is_contiguous())
        assert all(y.shape == (len(s), out) for y, out in zip(ys, stack.outs, strict=True))
        return [torch.cat(reference.run(stack, s, x, ys), 1).split(stack.outs, 1)[place] for place in range(len(ys))]

    def joined(stack, s, x, maps):
        calls.append("joined")
        return run(stack, s, x, [torch.nn.functional.linear(x, *one) for one in maps])

    monkeypatch.setattr(slots, "takes", lambda y: True)
    monkeypatch.setattr(slots, "joins", lambda stack, x, maps: stack.A is not None and len(x) <= FEW)
    monkeypatch.setattr(slots, "joined", joined)
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
        bands = [band for band in engine.residents.bands if isinstance(band, Band)]
        assert bool(bands) == (name in ("llama", "qwen3"))
        for band in bands:
            assert band.stack is not None
            assert not band.ready
    assert {1, 2, 3, "joined"} <= set(launched) or name in ("gpt2", "phi3")
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


@pytest.mark.parametrize("setting", ["lora", "dora", "houlsby", "bias", "prefix", "prompt"])
def test_adapters_like_the_first_move_nothing(setting, launched):
    """So that what is recorded of the first serves all that are known: there is room for as many as there are slots."""
    with loaded(slots=4, room=Room(cached=2048, batch=64, requests=16, page=4)) as engine:
        states = []
        for seed in range(3, 7):
            engine.load(f"{setting}{seed}", adapter(setting, seed))
        for seed in range(3, 7):
            assert engine.submit(prompt(7), f"{setting}{seed}", GREEDY).result(60).ids == alone(setting, prompt(7), NEW, seed)
            states.append(engine.slots.state())
        for seed in range(4, 7):
            engine.unload(f"{setting}{seed}")
        states.append(engine.slots.state())
        assert states == states[:1] * 5


@pytest.mark.parametrize("kernels", [True, False])
def test_there_is_no_room_to_spare_where_nobody_else_is_known_or_all_columns_are_computed(kernels, request):
    if kernels:
        request.getfixturevalue("launched")
    with loaded("lora", *(() if kernels else ("ia3", "dora")), slots=4) as engine:
        engine.submit(prompt(7), "lora", GREEDY).result(60)
        packs = [pack for slot in engine.wiring.slots.values() for pack in slot.packs.values()]
        assert packs
        assert not any(pack.spare for pack in packs)


def chains(engine):
    return [band for band in engine.residents.bands if isinstance(band, Chain)]


def test_what_acts_behind_a_sublayer_runs_with_its_last_map(launched):
    """But where one adapter acts at both; packs that are apart again keep what each holds."""
    both = graft.adapt(base(), [graft.LoRA(r=3), graft.Bottleneck(size=5)])
    with torch.no_grad():
        for value in both.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(7)) * 0.1)
    wanted, made = greedy(both.model, prompt(9)), both.adapter()
    settings = ("houlsby", "lora_bias", "bias", "pfeiffer", "dora", "parallel")
    rows = [(setting, prompt(length, length)) for length in (5, 11) for setting in (None, *settings)]
    with loaded(*settings, slots=8, room=Room(cached=4096, batch=24, requests=40, page=4)) as engine:
        engine.load("both", made)

        def check():
            launched.clear()
            handles = [engine.submit(ids, called(setting), GREEDY) for setting, ids in rows]
            for (setting, ids), handle in zip(rows, handles, strict=True):
                assert handle.result(60).ids == alone(setting, ids), setting

        check()
        check()
        count = len(launched)
        assert len(chains(engine)) == 2 * engine.model.config.num_hidden_layers
        assert all(chain.stack is not None for chain in chains(engine))
        assert engine.submit(prompt(9), "both", GREEDY).result(60).ids == wanted
        assert all(chain.stack is None for chain in chains(engine))
        check()
        assert len(launched) > count  # apart
        engine.unload("both")
        engine.unload("pfeiffer")
        engine.load("pfeiffer", adapter("pfeiffer"))
        check()
        assert all(chain.stack is not None for chain in chains(engine))
        assert engine.submit(prompt(9), "houlsby", GREEDY).result(60).ids == alone("houlsby", prompt(9))
        first = chains(engine)[0]
        first.gave = torch.zeros(1)
        with pytest.raises(AdapterError, match="did not return what its last linear map gave"):
            first.did(torch.ones(1))


def test_a_sublayer_that_returns_another_tensor_runs_apart(launched):
    model = base()
    mlp = model.model.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x).clone()
    with Engine(model, slots=2, room=Room(cached=1024, batch=24, requests=8, page=4)) as engine:
        for setting in ("lora", "houlsby"):
            engine.load(setting, adapter(setting))
            assert engine.submit(prompt(9), setting, GREEDY).result(60).ids == alone(setting, prompt(9))
        found = {chain.paths[1] for chain in chains(engine)}
        assert found == {f"model.layers.{layer}.{part}" for layer in range(2) for part in ("self_attn", "mlp")} - {"model.layers.0.mlp"}


def test_an_engine_makes_what_kernels_share_before_it_runs_anything(monkeypatch):
    """Within the memory of CUDA graphs an earlier graph would write over it: seen on a card alone."""
    seen = []
    model = base()
    model.register_forward_pre_hook(lambda module, args: seen.append("forward"))
    monkeypatch.setattr(manager.slots, "keep", lambda device: seen.append(("keep", device)))
    with Engine(model, slots=2, room=Room(cached=512, batch=24, requests=4, page=4)) as engine:
        engine.submit(prompt(9), None, GREEDY).result(60)
    assert seen[0] == ("keep", model.device)
    assert seen.count(("keep", model.device)) == 1
    assert "forward" in seen


def greedy(model, ids, new=NEW):
    found = list(ids)
    with torch.no_grad():
        for _ in range(new):
            found.append(int(model(input_ids=torch.tensor([found]), use_cache=False).logits[0, -1].argmax()))
    return found[len(ids) :]


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
