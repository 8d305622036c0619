"""Many adapters behind few slots and little host memory: what benchmarks/serve_thousand.py shows of a thousand, in small; and answers
that go on while adapters are loaded.
"""

import random
import threading

import pytest

from graft import formats, pack
from graft.errors import ServeError
from graft.model.ground import ground
from graft.model.residents import Residents
from graft.pack import Pack
from graft.serve import Engine, Room, Sampling
from test_serve import GREEDY, adapter, alone, base, loaded, prompt, together

METHODS = ("lora", "ia3", "bias", "prompt", "prefix")
COUNT, SLOTS, HOST = 60, 3, 60_000
NEW = Sampling(max_tokens=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sixty adapters of five methods, each with tensors of its own: {name: (setting, seed, folder)}."""
    made, here = {}, ground(base())
    for number in range(COUNT):
        setting, seed = METHODS[number % len(METHODS)], 100 + number
        made[f"{setting}{number}"] = setting, seed, tmp_path_factory.mktemp("many") / "adapter"
        formats.save(adapter(setting, seed), made[f"{setting}{number}"][2], here)
    return made


def held(engine):
    """Bytes in the slots: packs, and rows of virtual tokens."""
    rows = [value for value in (engine.rows.kv.value, engine.rows.embeddings.value) if value is not None]
    packs = [value for slot in engine.wiring.slots.values() for value in slot.buffers()]
    return sum(value.numel() * value.element_size() for value in packs + rows)


def test_sixty_adapters_are_right_within_three_slots_and_bounded_memory(folders):
    room = Room(cached=512, batch=24, requests=6, page=4)
    with Engine(base(), slots=SLOTS, room=room, host_bytes=HOST) as engine:
        for name, (_, _, folder) in folders.items():
            engine.register(name, folder)
        most, host, order = [], [], random.Random(0)
        for _ in range(2):
            names = order.sample(sorted(folders), COUNT)
            for few in (names[k : k + 12] for k in range(0, COUNT, 12)):
                handles = [engine.submit(prompt(6), name, NEW) for name in few]
                for name, handle in zip(few, handles, strict=True):
                    setting, seed, _ = folders[name]
                    assert handle.result(60).ids == alone(setting, prompt(6), 4, seed), name
                most.append(held(engine))
                host.append(engine.counts().host_bytes)
        counts = engine.counts()
        largest = max(served.bytes for served in engine.adapters())
        assert max(host) <= HOST + largest
        assert sum(served.bytes for served in engine.adapters()) > 3 * HOST  # so that it had to be bounded
        assert max(most) < 1.2 * most[0]  # a hundred and twenty requests take no more room than twelve
        assert max(most) < 3 * SLOTS * largest + 100_000
        assert sum(served.slot is not None for served in engine.adapters()) == SLOTS
        assert sum(own.evictions["slot"] for own in counts.adapters.values()) > COUNT
        assert sum(own.evictions["host"] for own in counts.adapters.values()) > COUNT
        assert all(own.requests["finished"] == 2 for name, own in counts.adapters.items() if name is not None)


def test_answers_go_on_while_forms_are_computed(monkeypatch):
    begun, release, threads = threading.Event(), threading.Event(), []
    prepare = Residents.prepare

    def slow(residents, adapter):
        threads.append(threading.current_thread())
        begun.set()
        assert release.wait(60)
        return prepare(residents, adapter)

    with loaded("lora", slots=1) as engine:
        monkeypatch.setattr(Residents, "prepare", slow)
        load = threading.Thread(target=engine.load, args=("ia3", adapter("ia3")))
        load.start()
        assert begun.wait(60)
        for setting in ("lora", None):
            assert engine.submit(prompt(7), setting, GREEDY).result(60).ids == alone(setting, prompt(7))
        assert load.is_alive()
        release.set()
        load.join(60)
        assert engine.submit(prompt(7), "ia3", GREEDY).result(60).ids == alone("ia3", prompt(7))
        assert len(threads) == 1


def test_adapters_loaded_beside_each_other_are_each_right():
    """Every thread's adapter touches modules that had no slot when it began."""
    settings = ("lora", "dora", "ia3", "houlsby", "bias", "lora_embedding", "prefix", "prompt")
    with loaded(slots=len(settings)) as engine:
        going, base_only = threading.Event(), []

        def ask():
            while not going.is_set():
                base_only.append(engine.submit(prompt(5), None, GREEDY).result(60).ids)

        threads = [threading.Thread(target=engine.load, args=(name, adapter(name))) for name in settings]
        asking = threading.Thread(target=ask)
        for thread in (asking, *threads):
            thread.start()
        for thread in threads:
            thread.join(60)
        for name in settings:
            assert engine.submit(prompt(9), name, GREEDY).result(60).ids == alone(name, prompt(9)), name
        going.set()
        asking.join(60)
        assert base_only
        assert all(ids == alone(None, prompt(5)) for ids in base_only)


def test_what_fails_on_its_way_into_a_slot_leaves_nothing_there(monkeypatch):
    with loaded("lora_bias", "ia3", slots=2) as engine:
        take = Pack.take

        def full(pack, *given):
            raise MemoryError("no room")

        monkeypatch.setattr(Pack, "take", full)
        with pytest.raises(ServeError, match="no room"):
            engine.submit(prompt(7), "lora_bias", GREEDY).result(60)
        monkeypatch.setattr(Pack, "take", take)
        assert not any(
            pack.holders or (pack.b is not None and pack.b.any()) for slot in engine.wiring.slots.values() for pack in slot.packs.values()
        )
        for name in ("ia3", "lora_bias"):
            assert engine.submit(prompt(7), name, GREEDY).result(60).ids == alone(name, prompt(7)), name


def test_on_a_cpu_only_the_columns_of_who_is_asked_are_read(monkeypatch):
    """Also once a slot has another adapter; of two in one batch, those of both."""
    read, project = set(), pack.project

    def seen(source, A):
        read.add(len(A))
        return project(source, A)

    monkeypatch.setattr(pack, "project", seen)
    settings = ("lora", "dora", "lora_bias", "ia3")
    with loaded(*settings, slots=4) as engine:
        for names, columns in (
            ((*settings,), {24}),
            (("lora",), {8}),
            (("dora", "ia3"), {8}),
            (("dora", "lora_bias"), {16}),
            (("ia3",), set()),
        ):
            for name in names:
                engine.submit(prompt(5), name, GREEDY).result(60)
            read.clear()
            rows = [(name, prompt(9)) for name in names]
            for (name, ids), handle in zip(rows, together(engine, rows), strict=True):
                assert handle.result(60).ids == alone(name, ids), name
            assert read == columns, names
        engine.unload("lora")
        engine.load("houlsby", adapter("houlsby"))
        assert engine.submit(prompt(9), "houlsby", GREEDY).result(60).ids == alone("houlsby", prompt(9))
        assert engine.submit(prompt(9), "dora", GREEDY).result(60).ids == alone("dora", prompt(9))
