"""Paged attention in the engine: on a CPU its plain version runs, through the same tables of pages that the kernels read on a GPU."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.generation.continuous_batching import model_runner as runners

from graft.errors import ServeError
from graft.kernels.attention import paged
from graft.serve import Room, batching
from graft.serve.batching import manager, paging, warm
from test_serve import GREEDY, NEW, adapter, alone, called, loaded, prompt, together, watched
from tiny import tiny

SETTINGS = ("lora", "dora", "ia3", "houlsby", "bias", "prefix", "prompt")


@pytest.fixture
def everywhere(monkeypatch):
    """Paged attention on any device; how many tokens and requests each of its calls had."""
    calls, attend = [], paged.attend

    def counted(batch, q, *rest):
        calls.append((len(q), sum(1 for _ in batch.requests()), batch.single))
        return attend(batch, q, *rest)

    monkeypatch.setattr(manager, "suits", lambda model, attention: True)
    monkeypatch.setattr(paged, "attend", counted)
    return calls


@pytest.mark.parametrize(("name", "batch"), [("llama", 24), ("qwen3", 64), ("phi3", 9)])
def test_rows_of_every_method_are_the_rows_alone(name, batch, everywhere):
    rows = [(setting, prompt(length, length)) for length in (5, 11, 17) for setting in (None, *SETTINGS)]
    with loaded(*SETTINGS, room=Room(cached=4096, batch=batch, requests=40, page=4), name=name) as engine:
        seen = watched(engine)
        for _ in range(2):  # the second time from the cache
            for (setting, ids), handle in zip(rows, together(engine, rows), strict=True):
                assert handle.result(60).ids == alone(setting, ids, NEW, 3, name), setting
        assert max(len(set(entries)) for entries in seen) > 4
        assert engine.batching.shared > 100
        assert str(engine.model.config._attn_implementation) == paging.NAME
        scored = engine.score([prompt(11, 11), prompt(5, 5)], "lora")  # a plain forward, by the model's own attention
        assert len(scored) == 2
    assert any(single for _, _, single in everywhere)
    assert any(not single and requests > 1 for _, requests, single in everywhere)
    assert str(engine.model.config._attn_implementation) != paging.NAME


def test_batches_are_padded_and_run_ahead(everywhere, monkeypatch):
    """As for CUDA graphs, whose sizes are few: rows without tokens, and tokens that are nobody's."""
    made = runners.ModelRunner.__init__

    def padding(runner, *given, **named):
        made(runner, *given, **named)
        runner.pad_inputs = True

    monkeypatch.setattr(runners.ModelRunner, "__init__", padding)
    rows = [(setting, prompt(length, length)) for length in (5, 11, 17) for setting in (None, *SETTINGS)]
    with loaded(*SETTINGS, room=Room(cached=1024, batch=24, requests=12, page=4)) as engine:
        engine.submit(prompt(3)).result(60)
        ran = {(tokens, single) for tokens, _, single in everywhere}
        assert ran == set(warm.sizes(12, 24))
        for _ in range(2):
            for (setting, ids), handle in zip(rows, together(engine, rows), strict=True):
                assert handle.result(60).ids == alone(setting, ids), setting
        assert {(tokens, single) for tokens, _, single in everywhere} == ran  # no other sizes


def test_a_model_that_passes_its_cache_no_arguments_is_served(everywhere):
    """GPT-NeoX calls the cache without what 5.24 hands its own attention."""
    with loaded("lora", name="gpt_neox") as engine:
        for setting in (None, "lora"):
            assert engine.submit(prompt(9), setting, GREEDY).result(60).ids == alone(setting, prompt(9), NEW, 3, "gpt_neox")


def test_where_it_takes_the_place_of_the_models_own(monkeypatch):
    monkeypatch.setattr(paged, "takes", lambda q: True)
    model = tiny("llama", torch.float32)
    assert paging.suits(model, "sdpa")
    assert not paging.suits(model, "flash_attention_2")
    model.config.sliding_window = 8
    assert not paging.suits(model, "sdpa")
    model.config.layer_types = ["full_attention"] * model.config.num_hidden_layers
    assert paging.suits(model, "sdpa")
    monkeypatch.undo()
    assert not paging.suits(model, "sdpa")  # a CPU


def test_a_model_with_sinks_is_refused_with_a_sentence():
    with pytest.raises(ServeError, match="attention sinks or biases"):
        paging.attention(torch.nn.Linear(1, 1), *[torch.zeros(1, 1, 1, 1)] * 3, None, s_aux=torch.zeros(1))


def test_sizes_hold_every_batch_and_waste_little():
    for most in (1, 7, 64, 100, 512):
        for tokens in range(1, most + 1):
            size = paging.padded(tokens, most)
            assert tokens <= size <= most
            assert size < 2 * tokens
            assert tokens < 65 or 2 * size < 3 * tokens
        for single, wanted in ((True, most), (False, most)):
            assert {size for size, one in warm.sizes(most, most) if one == single} >= {paging.padded(n, wanted) for n in range(2, most + 1)}


def test_only_graphs_that_read_what_moved_are_forgotten():
    class Graphs:
        def __init__(self):
            self._storage = {}

        def set_graph(self, key, graph):
            self._storage[key] = graph

    each = SimpleNamespace(graphs=Graphs(), compute_stream=None)
    each.graphs._storage = {(8, None, "base"): 1, (8, None, "adapters"): 2}
    made = object.__new__(batching.Batching)
    made.manager = SimpleNamespace(batch_processor=SimpleNamespace(inputs_and_outputs=each))
    made.forget_graphs(lambda variant: variant == "adapters")
    assert each.graphs._storage == {(8, None, "base"): 1}
    made.forget_graphs()
    assert each.graphs._storage == {}


def test_kernels_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("interpreted_paged.py")
    done = subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all agree" in done.stdout


def test_a_card_with_little_shared_memory_gets_smaller_tiles():
    launch = pytest.importorskip("graft.kernels.attention.paged.launch", reason="Triton is not installed")
    ran, here = [], torch.device("cpu")

    def run(keys, warps, stages):
        ran.append(keys)
        if keys > 32:
            raise launch.tiles.OutOfResources(1, 0, "shared memory")

    try:
        launch.fitted("few", 64, here, run)
        launch.fitted("few", 64, here, run)
        assert ran == [128, 64, 32, 32]
        with pytest.raises(launch.tiles.OutOfResources):
            launch.fitted("many", 64, here, lambda keys, *rest: run(keys + 32, *rest))
    finally:
        launch.FITTING.clear()


class Replayed:
    """A recorded graph, as far as a CPU can have one: static tensors are read anew, and all that Python decided stays as it was."""

    def __init__(self, runner, forward, args):
        self.run, self.guest, self.paging = (lambda: forward(*args)), runner.logit_processor.guest, paging.HERE.paging
        self.decided = self.guest.gate.needs, self.guest.draws, self.paging.plan, self.paging.call

    def replay(self):
        now = self.guest.gate.needs, self.guest.draws, self.paging.plan, self.paging.call
        self.swap(self.decided)
        self.run()
        self.swap(now)

    def swap(self, decided):
        self.guest.gate.needs, self.guest.draws, self.paging.plan, self.paging.call = decided
        self.paging.batches = {}

    def reset(self):
        pass


@pytest.fixture
def recorded(everywhere, monkeypatch):
    """Graphs on a CPU; the number of those that were recorded."""
    count, made = [], runners.ModelRunner.__init__

    def padding(runner, *given, **named):
        made(runner, *given, **named)
        runner.pad_inputs = runner.use_cuda_graph_varlen = runner.use_cuda_graph_decode = True

    def capture(runner, forward, stream, *args):
        forward(*args)
        runner.inputs_and_outputs.set_graph(Replayed(runner, forward, args))
        count.append(1)

    monkeypatch.setattr(runners.ModelRunner, "__init__", padding)
    monkeypatch.setattr(runners.ModelRunner, "_capture_graph", capture)
    return count


def test_graphs_serve_every_batch_and_are_recorded_while_nothing_runs(recorded):
    rows = [(setting, prompt(length, length)) for length in (5, 11, 17) for setting in (None, *SETTINGS)]
    room = Room(cached=1024, batch=24, requests=12, page=4)
    each = len(list(warm.sizes(12, 24)))
    with loaded(*SETTINGS, room=room) as engine:
        engine.submit(prompt(3)).result(60)
        assert len(recorded) == each  # of the bare base
        for _ in range(2):
            for (setting, ids), handle in zip(rows, together(engine, rows), strict=True):
                assert handle.result(60).ids == alone(setting, ids), setting
        wait_for(lambda: not missing(engine))
        before = len(recorded)
        assert before >= 2 * each + len([single for _, single in warm.sizes(12, 24) if not single])
        for setting, ids in rows:
            assert engine.submit(ids, called(setting), GREEDY).result(60).ids == alone(setting, ids), setting
        assert len(recorded) == before
        engine.load("late", adapter("lora", 5))  # moves what graphs read
        assert engine.submit(prompt(9), "late", GREEDY).result(60).ids == alone("lora", prompt(9), NEW, 5)
        wait_for(lambda: not missing(engine))


def missing(engine):
    processor = engine.batching.manager.batch_processor
    return [kind for kind in warm.kinds(processor) if not warm.known(processor.inputs_and_outputs, kind)]


def wait_for(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)
