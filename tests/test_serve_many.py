"""Many adapters behind few slots and little host memory: what benchmarks/serve_thousand.py shows of a thousand, in small."""

import random

import pytest

from graft import formats
from graft.model.ground import ground
from graft.serve import Engine, Room, Sampling
from test_serve import adapter, alone, base, prompt

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
