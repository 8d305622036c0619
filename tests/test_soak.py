"""The parts of the soak that need no half hour: what counts as wrong, unexpected or not flat is said to be so."""

import asyncio
import random
import types

import pytest

import soak
from graft.plan.cards import bytes_of
from playground_stub import Stub
from soaking.client import Client, Reply
from soaking.ledger import Ledger
from soaking.oracle import Case
from soaking.summary import markdown, summarise
from soaking.traffic import KINDS, Traffic, streamed, text_of
from soaking.watch import Watch

CASE = Case("lora-2", "t1 t2", False, "t3 t4")
SETTINGS = {"minutes": 1.0}
STOPPED = {"clean": True, "said": "it stopped"}


def watched(memory):
    watch = Watch(1, 1.0)
    watch.readings = [(float(second), value, 9, 7) for second, value in enumerate(memory)]
    return watch


@pytest.mark.parametrize(
    ("memory", "flat"),
    [
        ([300 + min(200, 20 * k) for k in range(100)], True),  # warms up, then level
        ([500 + 3 * (k % 2) for k in range(100)], True),
        ([500 + k for k in range(100)], False),  # a leak
        ([500] * 60 + [560] * 40, False),  # a step that stays
        ([500] * 60 + [900] + [500] * 39, True),  # a peak that does not
    ],
)
def test_memory_is_flat_or_not(memory, flat):
    assert watched(memory).summary()["flat"] is flat


def test_only_what_is_right_passes():
    def passed(**changes):
        ledger = Ledger()
        assert ledger.end("whole", Reply(200, b'{"choices": []}'), (200,))
        assert not ledger.end("hostile: x", Reply(400, b'{"error": {"message": "no"}}'), (400,))
        ledger.check("whole", CASE, "t3 t4", (CASE.answer,))
        for name, change in changes.items():
            getattr(ledger, name)(*change)
        found = summarise(ledger, watched([500] * 50), SETTINGS, STOPPED)
        assert "| whole | 200: 1" in markdown(found)
        return found["passed"]

    assert passed()
    assert not passed(check=("whole", CASE, "t3 t5", (CASE.answer,)))
    assert not passed(end=("whole", Reply(500, b'{"error": {"message": "oh"}}'), (200,)))
    assert not passed(end=("hostile: x", Reply(200, b"{}"), (400,)))
    assert not passed(end=("hostile: x", Reply(400, b"no sentence"), (400,)))
    assert not passed(end=("whole", Reply(0), (200,)))
    assert not passed(end=("stream", Reply(200, b"", [{"error": {"message": "in the middle"}}]), (200,)))
    assert not passed(note=("whole", "KeyError"))


def test_a_stream_without_an_end_is_no_whole_answer():
    pieces = [{"choices": [{"text": "t3", "finish_reason": None}]}, {"choices": [{"text": " t4", "finish_reason": None}]}]
    assert streamed(Reply(200, b"", pieces)) != "t3 t4"
    assert streamed(Reply(200, b"", [*pieces, {"choices": [{"text": "", "finish_reason": "length"}]}])) == "t3 t4"
    assert text_of(Reply(200, b'{"choices": [{"message": {"content": "t3 t4"}}]}')) == "t3 t4"


def test_every_kind_of_traffic_is_there():
    assert all(callable(getattr(Traffic, kind.replace(" ", "_"))) for kind in KINDS)


def test_an_answer_of_either_version_is_right_while_they_change_places_only():
    versions = {"swap-a": [Case("swap", "t1", False, "a")], "swap-b": [Case("swap", "t1", False, "b")]}
    traffic = Traffic(types.SimpleNamespace(), {"swap": versions}, None, Ledger(), random.Random(0))
    seen = []

    reread = Reply(400, b'{"error": {"message": "what lies in the folder is not what was loaded"}}')

    async def checked(kind, case, *, stream, rights, allowed):
        seen.append((sorted(rights()), allowed(reread), allowed(Reply(400, b'{"error": {"message": "another"}}'))))

    traffic.checked = checked
    traffic.rng.randrange = lambda count: 0
    asyncio.run(traffic.swapped("swapped"))
    traffic.turns.append(["swap-b", 0.0, float("inf")])  # its loading began
    asyncio.run(traffic.swapped("swapped"))
    traffic.turns[-1][2] = 0.0  # and ended
    asyncio.run(traffic.swapped("swapped"))
    assert seen == [(["a"], (), ()), (["a", "b"], (400,), ()), (["b"], (), ())]


def test_the_client_reads_streams_and_leaves_them():
    async def ask(stub, **options):
        body = {"model": "tiny", "messages": [], "stream": True}
        return await Client(stub.server_address[1], "k", "a").ask("/v1/chat/completions", body, **options)

    with Stub({"tiny": ["t1", " t2", " t3"]}) as stub:
        reply = asyncio.run(ask(stub))
        assert reply.status == 200
        assert streamed(reply) == "t1 t2 t3"
        assert 0 < reply.first <= reply.seconds
    with Stub({"tiny": ["t1 "] * 5000}, pause=0.001) as stub:
        reply = asyncio.run(ask(stub, leave_after=3))
        assert 3 <= len(reply.events) < 5000


def test_the_server_takes_what_the_soak_starts_it_with():
    assert bytes_of(soak.HOST_MEMORY) > 0
