"""Faults of one request, adapter or tokenizer are its own: they reach no other's answer, end no engine and leave nobody waiting."""

import math
import time

import pytest
import torch

import graft
from graft.errors import AdapterError, ServeError, Stopped
from graft.serve import Engine, Room, Sampling
from graft.serve.batching import graphs as recorded
from graft.serve.virtual import VirtualRows
from test_serve import GREEDY, SMALL, adapter, alone, base, loaded, prompt


def huge(method, value):
    """An adapter that holds one finite value everywhere."""
    host = graft.adapt(base(), method)
    with torch.no_grad():
        for one in host.parameters():
            one.fill_(value)
    return host.adapter()


@pytest.mark.parametrize("method", [graft.LoRA(r=2, alpha=32.0), graft.IA3()])
def test_values_that_are_no_numbers_once_scaled_or_cast_are_refused(method):
    bad = huge(method, 3e38 if method.kind == "lora" else math.inf)
    with loaded("lora", slots=2) as engine:
        with pytest.raises(ServeError, match=r"the adapter 'bad' .* cannot be served: its values at .* are not finite in torch.float32"):
            engine.load("bad", bad)
        assert engine.submit(prompt(5), "lora", GREEDY).result(60).ids == alone("lora", prompt(5))
    host = graft.adapt(base(), graft.LoRA(r=2))
    with pytest.raises(AdapterError, match="are not finite"):
        host.add("bad", bad)


@pytest.mark.parametrize(("method", "value"), [(graft.Prefix(n=2), 3e38), (graft.LoRA(r=2, alpha=2.0), 1e16)])
def test_what_overflows_in_one_request_reaches_no_other(method, value):
    """On a CPU attention sees all requests of a batch at once; what is no number goes through a mask."""
    text = prompt(40)
    with loaded("lora", slots=2) as engine:
        engine.load("bad", huge(method, value))
        bad, own, lora = (engine.submit(text, name, GREEDY) for name in ("bad", None, "lora"))
        assert own.result(60).ids == alone(None, text)
        assert lora.result(60).ids == alone("lora", text)
        bad.result(60)
        engine.unload("bad")
        assert engine.submit(text, None, GREEDY).result(60).ids == alone(None, text)  # from pages that were cached beside it


def test_recorded_graphs_tell_tensors_of_other_shapes_apart():
    rows, memory = VirtualRows(3, torch.device("cpu"), torch.float32), torch.zeros(2 * 2 * 4 * 6)
    states = set()
    for shape in ((2, 2, 4, 2, 3), (2, 2, 2, 4, 3), (2, 2, 2, 2, 6)):
        rows.kv.value = memory.view(shape)
        states.add(rows.state())
    assert len(states) == 3


def test_an_error_without_words_is_no_answer():
    def fails(*given):
        raise AssertionError

    with loaded("lora", slots=1) as engine:
        engine.floor.choose = fails
        with pytest.raises(ServeError, match="failed: an error that says nothing of itself"):
            engine.submit(prompt(5), "lora", GREEDY).result(60)


class Tokenizer:
    """One that fails at some ids."""

    def decode(self, ids, **options):
        if self.bad & {*ids}:
            raise KeyError("no such token")
        return " ".join(map(str, ids))

    def convert_ids_to_tokens(self, ids):
        return [self.decode([one]) for one in ids]


def test_a_tokenizer_that_fails_ends_one_answer_and_no_engine():
    tokenizer, text = Tokenizer(), prompt(5)
    tokenizer.bad = {alone(None, text)[2]}
    engine = Engine(base(), tokenizer, slots=1, room=SMALL)
    engine.load("lora", adapter("lora"))
    with engine:
        with pytest.raises(ServeError, match="an answer of the base could not be told: KeyError"):
            engine.submit(text, None, Sampling(max_tokens=10, stop=("never",))).result(60)
        assert engine.submit(text, "lora", GREEDY).result(60).ids == alone("lora", text)


def test_an_engine_that_dies_twice_says_so(monkeypatch):
    with loaded("lora", slots=1) as engine:
        monkeypatch.setattr(type(engine.floor), "deliver", lambda *given, **named: 1 / 0)
        engine.floor.choose = lambda logits, rows: 1 / 0
        with pytest.raises(Stopped, match="ZeroDivisionError"):
            engine.submit(prompt(5), "lora", GREEDY).result(60)
        assert engine.floor.dead


def test_nobody_waits_for_an_engine_that_has_ended(monkeypatch):
    engine = loaded("lora", slots=1).start()
    tickets = engine.tickets

    def late(*given, **named):
        made = tickets(*given, **named)
        engine.stop(now=True)
        return made

    monkeypatch.setattr(engine, "tickets", late)
    began = time.monotonic()
    with pytest.raises(Stopped, match="the engine was stopped"):
        engine.submit(prompt(5), None, GREEDY, deadline=1.0)
    assert time.monotonic() - began < 60
    engine.close()


@pytest.mark.parametrize("room", [{"batch": 0}, {"requests": -1}, {"cached": 3}, {"page": 0}])
def test_sizes_that_answer_nothing_are_refused(room):
    with pytest.raises(ServeError, match=f"{next(iter(room))} is {next(iter(room.values()))}: it must be at least"):
        Room(**room)
    with pytest.raises(ServeError, match="slots is 0"):
        Engine(base(), slots=0)


def test_graphs_are_no_more_than_may_be_and_the_one_used_longest_ago_goes(monkeypatch):
    class Recorded:
        def reset(self):
            gone.append(self)

    gone, graphs, made = [], recorded.Graphs(), [Recorded() for _ in range(4)]
    monkeypatch.setattr(recorded, "MOST", 3)
    for number, graph in enumerate(made[:3]):
        graphs.set_graph(number, graph)
    assert graphs.get_graph(0) is made[0]
    graphs.set_graph(3, made[3])
    assert gone == [made[1]]
    assert [graphs.get_graph(number) for number in range(4)] == [made[0], None, made[2], made[3]]


@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 1e-30, 1e-7])
def test_a_temperature_near_zero_is_greedy(temperature):
    with loaded("lora", slots=1) as engine:
        cold, warm = (engine.submit(prompt(5), "lora", Sampling(max_tokens=10, temperature=one, seed=1)) for one in (temperature, 1.0))
        assert cold.result(60).ids == alone("lora", prompt(5))
        warm.result(60)
