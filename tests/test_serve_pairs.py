"""The law of serving: greedy answers of any two methods in one step are those of each adapter alone, whatever the engine does meanwhile.

Every pair is asked for with prefix sharing, prompts in chunks and adapters that leave their slots, and each of these is seen to happen:
a test in which nothing is found in the cache would say nothing of the cache.
"""

import itertools
import random
import threading

import pytest

from graft.errors import ServeError, UnknownAdapter
from graft.serve import Queueing, Room, Sampling
from test_serve import adapter, alone, called, loaded, prompt, together

METHODS = (
    *(None, "lora", "dora", "ia3", "houlsby", "parallel", "bias", "prefix", "prefix_unshifted", "prompt"),
    *("lora+bias", "prefix+lora", "prompt+lora"),
)
PAIRS = tuple(itertools.combinations(METHODS, 2))
COMMON = prompt(13, 1)  # three pages of four that requests of one adapter share
NEW = Sampling(max_tokens=5)


def virtual(entry):
    """An adapter's virtual tokens."""
    return 0 if entry is None else entry.virtual


def steps(engine):
    """What each batch of the engine holds: (entry, tokens, up to which position) of each request."""
    seen, fill = [], engine.floor.fill

    def filled(batch, rows):
        out = fill(batch, rows)
        known = [(engine.floor.running.get(one.name), one) for one in batch]
        seen.append([(ticket.entry, one.length, one.position) for ticket, one in known if ticket is not None])
        return out

    engine.floor.fill = filled
    return seen


def test_any_two_methods_in_one_step_are_each_alone():
    """Two slots: each pair needs others to leave them. A step has 16 tokens, so that two prompts of 22 never fit into one."""
    settings = [one for one in METHODS if one is not None]
    room = Room(cached=4096, batch=16, requests=4, page=4)
    with loaded(*settings, slots=2, room=room) as engine:
        seen = steps(engine)
        for number, pair in enumerate(PAIRS):
            begun, ids = len(seen), (*COMMON, *prompt(9, 100 + number))
            before = engine.counts()
            for one, handle in zip(pair, together(engine, [(one, ids) for one in pair], NEW), strict=True):
                assert handle.result(60).ids == alone(one, ids, 5), (pair, one)
            entries = [None if one is None else engine.library.entries[called(one)] for one in pair]
            own = seen[begun:]
            assert any(set(entries) <= {entry for entry, *_ in step} for step in own), pair  # both in one step
            chunks = [length for step in own for entry, length, to in step if length > 1 and to < len(ids) + virtual(entry)]
            assert chunks, pair  # a prompt in more than one step
            after = engine.counts()
            for one in pair:
                if any(one in earlier for earlier in PAIRS[:number]):
                    shared = [each.adapters[called(one)].tokens["shared"] for each in (before, after)]
                    assert shared[1] - shared[0] >= 12, (pair, one)  # the common pages, from the cache
        assert engine.slots.evictions >= len(settings) * (len(settings) - 1) // 4
        assert all(own.requests["failed"] == 0 for own in engine.counts().adapters.values())


class Storm:
    """Callers, cancels, loads under the same name, unloads and deadlines at once, from one seed; every answer is checked."""

    NAMES = ("lora", "ia3", "prefix", "prompt", "dora", "houlsby", "bias")
    TEXTS = tuple((*COMMON, *prompt(n, n)) for n in (1, 4, 9, 14))
    MOST = 24

    def __init__(self, engine, seed):
        self.engine, self.random = engine, random.Random(seed)
        self.wrong, self.done, self.lock = [], {"answered": 0, "cut": 0, "refused": 0}, threading.Lock()

    def caller(self, seed):
        own = random.Random(seed)
        for _ in range(25):
            name, ids, what = own.choice((*self.NAMES, None)), own.choice(self.TEXTS), own.random()
            wanted = Sampling(max_tokens=own.choice((1, 5, self.MOST)), n=own.choice((1, 1, 2)))
            try:
                handle = self.engine.submit(ids, name, wanted, deadline=own.choice((None, 30, 0.05)))
                if what < 0.3:
                    taken = [token for token, _ in zip(handle, range(own.randrange(4)), strict=False)]
                    handle.cancel()
                    handle.cancel()
                    self.check(name, ids, handle.result(60), cut=True, least=len(taken) // 2)
                else:
                    self.check(name, ids, handle.result(60), cut=False, least=wanted.max_tokens)
            except ServeError as error:
                self.note("refused", error, ("within its time", "is served here", "changes", "wait"))

    def check(self, name, ids, result, *, cut, least):
        """An answer is that of one of the contents that the name has ever had, or cut off from its beginning."""
        known = [alone(name, ids, self.MOST, seed) for seed in ((3, 8) if name else (3,))]
        for answer in result.answers:
            right = any(own[: len(answer.ids)] == answer.ids for own in known)
            whole = len(answer.ids) >= least or cut or answer.reason == "cancelled"
            with self.lock:
                self.done["cut" if answer.reason == "cancelled" else "answered"] += 1
                self.wrong += [] if right and whole else [(name, len(ids), answer.ids, answer.reason, known)]

    def note(self, what, error, expected):
        with self.lock:
            self.done[what] += 1
            self.wrong += [] if any(text in str(error) for text in expected) else [str(error)]

    def keeper(self):
        """Loads, under the same names, one of two contents, and unloads, with and without ending what runs."""
        for _ in range(40):
            name = self.random.choice(self.NAMES)
            try:
                if self.random.random() < 0.3:
                    self.engine.unload(name, cancel=self.random.random() < 0.5)
                self.engine.load(name, adapter(name, self.random.choice((3, 8))))
            except UnknownAdapter:
                pass


@pytest.mark.parametrize("seed", range(2))
def test_in_a_storm_of_requests_loads_and_cancels_every_answer_is_right(seed):
    for name in (*Storm.NAMES, None):  # what is right is computed before, so that the storm is one
        for ids in Storm.TEXTS:
            for content in (3, 8) if name else (3,):
                alone(name, ids, Storm.MOST, content)
    room = Room(cached=640, batch=20, requests=6, page=4)
    with loaded(*Storm.NAMES, slots=3, room=room, queueing=Queueing(waiting=40, quantum=60)) as engine:
        storm = Storm(engine, seed)
        callers = [threading.Thread(target=storm.caller, args=(100 * seed + k,)) for k in range(5)]
        for thread in (*callers, threading.Thread(target=storm.keeper)):
            thread.start()
        for thread in callers:
            thread.join(120)
        assert not any(thread.is_alive() for thread in callers)
        assert not storm.wrong
        assert storm.done["answered"] > 50
        settle(engine)
        for name in list(engine.library.entries):
            engine.unload(name)
        engine.floor.run(lambda: None)
        assert len(engine.slots.free) == 3
        assert not any(slot.packs for slot in engine.wiring.slots.values())
        assert engine.rows.kv.value is None
        assert engine.floor.idle()
        assert engine.floor.fair.count == 0
        counts = engine.counts()
        assert all(own.waiting == own.running == own.requests["failed"] == 0 for own in counts.adapters.values())
        processor = engine.batching.manager.batch_processor
        assert not processor.scheduler.active_requests
        assert not processor.scheduler.waiting_requests
        assert not engine.batching.salts


def settle(engine):
    """Wait until nothing waits or runs: what was cancelled leaves a batch later."""
    for _ in range(500):
        if engine.floor.idle():
            return
        threading.Event().wait(0.01)
