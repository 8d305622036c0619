"""What the engine counts: each request once, each token, times in the right bucket, and no number falls."""

import threading
from types import SimpleNamespace

import pytest

from graft.errors import ServeError
from graft.serve import Room, Sampling, counts
from test_serve import GREEDY, LONG, NEW, adapter, loaded, prompt


def test_requests_and_tokens_are_counted_by_adapter_and_outcome():
    with loaded("lora", "prefix") as engine:
        assert engine.counts().adapters[None].requests == dict.fromkeys(counts.OUTCOMES, 0)  # not the one that tries the model
        engine.submit(prompt(9), "lora", GREEDY).result(60)
        engine.submit(prompt(9), "lora", GREEDY).result(60)
        engine.submit(prompt(7), "prefix", Sampling(max_tokens=5, n=3)).result(60)
        engine.score([prompt(6), prompt(8)])
        handle = engine.submit(prompt(5), None, Sampling(max_tokens=400))
        next(iter(handle))
        handle.cancel()
        handle.cancel()
        done = len(handle.result(60).ids)
        for name in ("lora", "nobody", "nobody's"):
            with pytest.raises(ServeError):
                engine.submit([], name, GREEDY)
        found = engine.counts()
        lora, prefix, base = (found.adapters[name] for name in ("lora", "prefix", None))
        assert lora.requests == {"finished": 2, "cancelled": 0, "expired": 0, "failed": 0, "refused": 1}
        assert lora.tokens == {"prompt": 18, "virtual": 0, "generated": 2 * NEW, "shared": 8}  # two pages of four
        assert prefix.requests["finished"] == 1
        assert prefix.tokens == {"prompt": 7, "virtual": 4, "generated": 15, "shared": prefix.tokens["shared"]}
        assert base.requests | {"failed": 0} == {"finished": 2, "cancelled": 1, "expired": 0, "failed": 0, "refused": 0}
        assert base.tokens["generated"] == done
        assert (found.unknown, set(found.adapters)) == (2, {None, "lora", "prefix"})
        assert (found.slots, found.slots_used) == (2, 2)
        assert found.host_bytes == sum(served.bytes for served in engine.adapters())
        assert engine.batching.shared == sum(own.tokens["shared"] for own in found.adapters.values())
        assert [lora.seconds[what].count for what in counts.TIMES] == [2, 2, 2 * (NEW - 1), 1, 1]
        assert [prefix.seconds[what].count for what in counts.TIMES] == [1, 1, 3 * 4, 1, 1]


def test_what_waits_and_runs_is_counted_as_long_as_it_does():
    with loaded("lora", "ia3", slots=1, room=Room(cached=2048, batch=24, requests=8, page=4)) as engine:
        running = [engine.submit(prompt(5), "lora", LONG) for _ in range(2)]
        for handle in running:
            next(iter(handle))
        waiting = [engine.submit(prompt(5), "ia3", GREEDY) for _ in range(3)]
        found = engine.counts().adapters
        assert ((found["lora"].waiting, found["lora"].running), (found["ia3"].waiting, found["ia3"].running)) == ((0, 2), (3, 0))
        for handle in running + waiting:
            handle.result(60)
        engine.floor.run(lambda: None)
        found = engine.counts().adapters
        assert [(own.waiting, own.running) for own in found.values()] == [(0, 0)] * 3
        assert found["lora"].evictions == {"slot": 1, "host": 0}
        assert found["ia3"].seconds["queue"].sum > found["lora"].seconds["queue"].sum


def test_a_request_fails_once_and_a_name_keeps_its_numbers():
    with loaded("lora") as engine:
        engine.submit(prompt(5), "lora", GREEDY).result(60)
        engine.unload("lora")
        assert engine.counts().adapters["lora"].requests["finished"] == 1
        engine.load("lora", adapter("lora", seed=8))
        engine.submit(prompt(5), "lora", GREEDY).result(60)
        handles = [engine.submit(prompt(5), "lora", Sampling(max_tokens=400, n=2)) for _ in range(2)]
        engine.stop(now=True)
        for handle in handles:
            with pytest.raises(ServeError, match="was not answered"):
                handle.result(5)
        requests = engine.counts().adapters["lora"].requests
        assert requests == {"finished": 2, "cancelled": 0, "expired": 0, "failed": 2, "refused": 0}


def test_times_are_in_the_bucket_that_holds_them():
    times = counts.Times()
    for seconds in (0.0, 0.001, 0.0011, 0.3, 100.0, 101.0):
        times.add(seconds)
    assert [(k, n) for k, n in enumerate(times.buckets) if n] == [(0, 2), (1, 1), (8, 1), (15, 1), (16, 1)]
    assert times.sum == pytest.approx(201.3021)
    assert tuple(sorted(counts.BOUNDS)) == counts.BOUNDS


def test_times_are_those_of_the_clock(monkeypatch):
    clock = iter([10.0, 10.5, 12.0, 12.25, 13.0])
    monkeypatch.setattr(counts, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    tally = counts.Tally()
    trip = counts.Trip(tally, answers=2, prompt=3, virtual=1)
    trip.begin()
    trip.begin()
    last = trip.token(0.0)
    trip.token(last)
    trip.token(0.0)  # the other answer's first is not the request's
    trip.end(counts.FINISHED)
    assert tally.requests["finished"] == 0
    trip.end(counts.FAILED)
    found = tally.counted(0, 0)
    assert {what: found.seconds[what].sum for what in ("queue", "first_token", "token")} == {
        "queue": 0.5,
        "first_token": 2.0,
        "token": 0.25,
    }
    assert (found.requests["finished"], found.requests["failed"]) == (0, 1)


def test_counting_from_many_threads_loses_nothing():
    tallies = counts.Tallies()

    def work():
        for _ in range(2000):
            tallies.of("a").spent("generated", 1)
            tallies.refused("b", known=False)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tallies.by_name["a"].tokens["generated"] == tallies.unknown == 8000


def test_names_are_forgotten_past_a_bound_and_never_the_base(monkeypatch):
    monkeypatch.setattr(counts, "NAMES", 4)
    tallies = counts.Tallies()
    for number in range(20):
        tallies.of("steady").ended(counts.FINISHED)
        tallies.of(f"a{number}")
    assert len(tallies.by_name) == 4
    assert None in tallies.by_name
    assert tallies.of("steady").requests["finished"] == 20
