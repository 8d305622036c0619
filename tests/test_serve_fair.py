"""Who may start next: what flows are given stays within the bound that graft.serve.fair states, and nobody waits for ever."""

import random
import time
from collections import Counter, deque
from types import SimpleNamespace

import pytest

from graft.errors import Expired, Overloaded, ServeError
from graft.serve import Queueing, Room, Sampling
from graft.serve.fair import Fair, Start
from graft.serve.ticket import SPARE, Due
from test_serve import GREEDY, LONG, adapter, alone, loaded, prompt, together, watched


class Shop:
    """A server in small: `places` run at once, on `slots`; who starts is the queue's to say, and takes as many ticks as it has tokens."""

    def __init__(self, names, slots, places, queueing, seed):
        self.random, self.fair = random.Random(seed), Fair(queueing)
        self.slots, self.places = slots, places
        self.entries = {name: SimpleNamespace(name=name, slot=None, waiting=0, running=0) for name in names if name is not None}
        self.most = {name: self.random.randint(2, 60) for name in names}
        self.running, self.given, self.swaps, self.begun = [], Counter(), 0, []

    def ask(self, name, cost=None):
        entry = self.entries.get(name)
        cost = cost or self.random.randint(1, self.most[name])
        self.fair.add([SimpleNamespace(named=name, entry=entry, cost=cost, left=cost, closed=False, what=name)])
        if entry is not None:
            entry.waiting += 1

    def start(self, ticket, kept):
        entry = ticket.entry
        if entry is not None:
            holders = [one for one in self.entries.values() if one.slot is not None]
            if entry.slot is None and len(holders) >= self.slots:
                idle = next((one for one in holders if not one.running and not kept(one)), None)
                if idle is None:
                    return Start.STUCK
                idle.slot = None
            self.swaps += entry.slot is None
            entry.slot, entry.waiting, entry.running = 1, entry.waiting - 1, entry.running + 1
        self.running.append(ticket)
        self.given[ticket.named] += ticket.cost
        self.begun.append(ticket.named)
        return Start.GONE

    def tick(self):
        self.fair.admit(lambda: len(self.running) >= self.places, self.start)
        for ticket in self.running:
            ticket.left -= 1
            if ticket.entry is not None:
                ticket.entry.running -= ticket.left == 0
        self.running = [ticket for ticket in self.running if ticket.left]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("slots", "quantum"), [(9, 0), (3, 0), (3, 150), (1, 40), (1, 400)])
def test_flows_that_always_wait_are_given_alike(slots, quantum, seed):
    names = [f"a{k}" for k in range(6)] + ([None] if slots == 9 else [])
    shop = Shop(names, slots, places=5, queueing=Queueing(quantum=quantum), seed=seed)
    bound = 0 if slots == 9 else quantum
    for _ in range(3000):
        for name in names:
            while len(shop.fair.flows[name].tickets if name in shop.fair.flows else ()) < 8:
                shop.ask(name)
        shop.tick()
        for f in names:
            for m in names:
                assert shop.given[f] - shop.given[m] <= shop.most[f] + shop.most[m] + bound
    assert min(shop.given.values()) > 500


def test_a_greater_quantum_swaps_less():
    swaps = []
    for quantum in (0, 100, 1000):
        shop = Shop(["a", "b"], 1, 4, Queueing(quantum=quantum), seed=0)
        for _ in range(400):
            shop.ask("a", 10)
            shop.ask("b", 10)
        while shop.fair.count:
            shop.tick()
        swaps.append(shop.swaps)
    assert swaps[0] > 2 * swaps[1] > 4 * swaps[2]


def test_one_that_was_idle_saves_nothing_up_and_one_that_asks_once_is_next():
    shop = Shop(["flood", "idle", "cold"], 3, 1, Queueing(), seed=0)
    shop.ask("idle", 5)
    for _ in range(100):
        shop.ask("flood", 10)
    while len(shop.begun) < 50:
        shop.tick()
    for _ in range(100):
        shop.ask("idle", 10)
    shop.ask("cold", 10)
    while len(shop.begun) < 90:
        shop.tick()
    assert shop.begun.index("cold") <= 52
    assert 18 <= shop.begun[50:].count("idle") <= 21  # not all forty, as one that had saved up would


def test_what_was_not_used_is_given_back():
    shop = Shop(["a", "b"], 2, 1, Queueing(), seed=0)
    start = shop.start

    def short(ticket, kept):
        if ticket.named == "a":  # asks for much, and ends at once
            ticket.left = 10
        return start(ticket, kept)

    shop.start = short
    for _ in range(300):
        shop.ask("a", 100)
        shop.ask("b", 10)
    before = deque()
    while len(shop.begun) < 200:
        shop.tick()
        for ticket in before:
            if not ticket.left and ticket.named == "a":
                shop.fair.refund(ticket, 90)
        before = list(shop.running)
    assert abs(shop.begun.count("a") - shop.begun.count("b")) <= 20


def test_flows_that_have_nothing_to_say_are_forgotten(monkeypatch):
    monkeypatch.setattr("graft.serve.fair.FLOWS", 8)
    shop = Shop(["steady", *(f"a{k}" for k in range(100))], 101, 4, Queueing(), seed=0)
    for name in shop.entries:
        shop.ask(name, 3)
        shop.ask("steady", 3)
        while shop.fair.count:
            shop.tick()
    assert len(shop.fair.flows) < 20
    assert shop.given["steady"] == shop.fair.flows["steady"].tag


def test_a_flood_does_not_starve_twenty_cold_adapters():
    """Two slots, one of them the flood's: all the cold are answered while most of the flood still waits."""
    room, cold = Room(cached=2048, batch=24, requests=4, page=4), [f"c{k}" for k in range(20)]
    with loaded("lora", slots=2, room=room, queueing=Queueing(quantum=100)) as engine:
        for name in cold:
            engine.load(name, adapter("ia3"))
        seen, handles = watched(engine), []
        fill = engine.floor.fill

        def filled(batch, rows):
            if len(seen) == 5:  # the flood runs, and no pace of the machine has let much of it pass
                handles.extend(engine.submit(prompt(5), name, Sampling(max_tokens=4)) for name in cold)
            return fill(batch, rows)

        engine.floor.fill = filled
        flood = together(engine, [("lora", prompt(5))] * 80, Sampling(max_tokens=20))
        flood[0].result(60)
        assert len(handles) == len(cold)
        for handle in handles:
            assert handle.result(60).ids == alone("ia3", prompt(5), 4)
        base = engine.submit(prompt(5), None, GREEDY).result(60)
        assert base.ids == alone(None, prompt(5))
        for handle in flood:
            assert handle.result(60).ids == alone("lora", prompt(5), 20)
        entries = engine.library.entries
        last = max(k for k, step in enumerate(seen) if any(entries[name] in step for name in cold))
        assert sum(step.count(entries["lora"]) for step in seen[last:]) > 40 * 20  # tokens that were the flood's afterwards
        assert sum(entries["lora"] not in step for step in seen) < 400  # and the flood went on


def test_who_may_wait_is_limited():
    with loaded("lora", "ia3", slots=1, queueing=Queueing(waiting=5, each=3)) as engine:
        running = engine.submit(prompt(5), "lora", Sampling(max_tokens=400))
        next(iter(running))
        first = [engine.submit(prompt(5), "ia3", GREEDY) for _ in range(2)]
        with pytest.raises(Overloaded, match=r"2 requests wait for the adapter 'ia3' \(ia3\), and at most 3 may"):
            engine.submit(prompt(5), "ia3", Sampling(n=2))
        first.append(engine.submit(prompt(5), "ia3", GREEDY))
        with pytest.raises(Overloaded, match="3 requests wait here, and at most 5 may: try again later"):
            engine.submit(prompt(5), None, Sampling(n=3))
        found = engine.counts().adapters
        assert (found["ia3"].waiting, found["ia3"].requests["refused"], found[None].requests["refused"]) == (3, 1, 1)
        running.cancel()
        for handle in first:
            assert handle.result(60).ids == alone("ia3", prompt(5))
        assert engine.submit(prompt(5), "ia3", GREEDY).result(60).ids == alone("ia3", prompt(5))


def test_a_request_ends_by_its_deadline_whether_it_waits_or_runs():
    with loaded("lora", "ia3", slots=1, room=Room(cached=8192, batch=24, requests=8, page=4)) as engine:
        engine.limits = engine.limits.__class__(64, 10**6, 10**6)
        seen = watched(engine)
        running = engine.submit(prompt(5), "lora", Sampling(max_tokens=6000), deadline=0.6)
        waits = engine.submit(prompt(5), "ia3", GREEDY, deadline=0.2)
        texts = engine.submit_scoring(prompt(5), "ia3", deadline=0.2)
        later = engine.submit(prompt(5), "ia3", GREEDY, deadline=60)
        for wait in (waits.result, texts.scored):
            with pytest.raises(Expired, match=r"a request for the adapter 'ia3' \(ia3\) was not answered within its time"):
                wait()
        with pytest.raises(ServeError, match="within its time"):
            running.result()
        assert 0 < len(running.whole().ids) < 6000
        assert later.result(60).ids == alone("ia3", prompt(5))
        assert len(seen) < 3000  # it did not go on unheard
        engine.floor.run(lambda: None)
        found = engine.counts().adapters
        assert found["ia3"].seconds["queue"].count == 1  # of three only the last began
        assert (found["lora"].requests["expired"], found["ia3"].requests["expired"], found["ia3"].requests["finished"]) == (1, 2, 1)
        assert not engine.floor.running


def test_those_that_were_answered_are_not_remembered_until_they_are_due():
    due = Due()
    for number in range(1000):
        ticket = SimpleNamespace(until=time.monotonic() + 100, closed=False, number=number)
        due.add([ticket])
        ticket.closed = number > 10
        due.over(11)
    assert len(due.heap) <= 2 * 11 + SPARE + 1


def test_events_go_where_they_are_wanted_and_a_broken_sink_hurts_nobody():
    class Broken:
        def put(self, event):
            raise RuntimeError("the loop is closed")

    events = []
    with loaded("lora") as engine:
        other = engine.submit(prompt(5), "lora", LONG)
        handle = engine.submit(prompt(5), "lora", GREEDY, events=SimpleNamespace(put=events.append))
        engine.submit(prompt(5), "lora", Sampling(max_tokens=400), events=Broken())
        assert other.result(60).ids == alone("lora", prompt(5), 120)
        for event in events:
            handle.take(event)
        assert handle.whole().ids == alone("lora", prompt(5))
        assert handle.whole().answers[0].reason == "length"
        engine.floor.run(lambda: None)
        assert engine.counts().adapters["lora"].requests["cancelled"] == 1
        assert not engine.floor.running
