"""What work asks of the host: its time against the card's, numbers that it reads back, and what is put right after a capture that failed.

On a CPU a card is stood in for: events that tell a time, torch's mode for synchronising operations, a generator, an allocator.
"""

import warnings
from types import SimpleNamespace

import pytest
import torch

from graft.model import capture, waits
from graft.model.waits import HOST, SEEN, Watch, watched

READS = f"{SEEN} (Triggered internally at CUDAFunctions.cpp:180.)"


@pytest.fixture
def card(monkeypatch):
    """A card on which work takes as many seconds as `card.takes` says; `card.done` is what was asked of it, in order."""
    found = SimpleNamespace(takes=0.0, done=[], mode=2)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            found.done.append("record")

        def elapsed_time(self, other):
            assert found.done[-1] == "synchronize"
            return 1000 * found.takes

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: found.done.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: found.mode)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(found, "mode", mode))
    return found


def test_host_and_card_are_timed_without_waiting_inside(card, monkeypatch):
    now = iter([10.0, 13.0])
    monkeypatch.setattr(waits.time, "perf_counter", lambda: next(now))
    card.takes = 4.0
    with watched() as seen:
        card.done.append("work")
    assert (seen.host, seen.card, seen.reads) == (3.0, 4.0, "")
    assert card.done == ["synchronize", "record", "work", "record", "synchronize"]


def test_a_recording_pays_where_the_host_needs_more_than_its_share():
    assert Watch(host=1.01 * HOST, card=1.0).pays
    assert not Watch(host=0.99 * HOST, card=1.0).pays
    assert Watch(host=1.0, card=1.0).pays  # the card waits for the host


def test_the_first_place_that_reads_a_number_back_is_named(card):
    with watched() as seen:
        assert card.mode == "warn"
        warnings.warn_explicit(READS, UserWarning, "/site-packages/models/mixture.py", 7)
        warnings.warn_explicit(READS, UserWarning, "/site-packages/models/later.py", 8)
    assert seen.reads == "models/mixture.py:7"
    assert card.mode == 2


def test_other_warnings_are_shown_and_errors_stay_errors(card):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with watched() as seen:
            warnings.warn(READS, UserWarning, stacklevel=1)
            warnings.warn("something else", RuntimeWarning, stacklevel=1)
    assert [(str(each.message), each.category) for each in shown] == [("something else", RuntimeWarning)]
    assert seen.reads.startswith("tests/test_waits.py:")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("ignore")
        with watched():
            warnings.warn("not to be shown", RuntimeWarning, stacklevel=1)
    assert not shown
    with pytest.raises(ValueError, match="of the work"), watched():
        raise ValueError("of the work")
    assert card.mode == 2


class Generator:
    """A generator whose state captures; a clone of it draws on where it was and does not."""

    def __init__(self, offset, capturing):
        self.offset, self.capturing = offset, capturing

    def clone_state(self):
        return Generator(self.offset, False)

    def graphsafe_set_state(self, other):
        self.offset, self.capturing = other.offset, other.capturing


@pytest.fixture
def failing(monkeypatch):
    """A capture that cannot end, on a card where everything that it leaves behind is written down."""
    left = SimpleNamespace(stream="before", generator=Generator(12, False), under_way=[], pools=[], resets=[])

    class Capture:
        def __init__(self, graph, pool, stream, capture_error_mode):
            self.pool, self.stream = pool, stream

        def __enter__(self):
            left.stream, left.generator.capturing = self.stream, True
            left.under_way.append(self.pool)
            left.pools.append(self.pool)

        def __exit__(self, *raised):
            raise RuntimeError("operation failed due to a previous error during capture")

    def end(device, pool):
        if pool not in left.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        left.under_way.remove(pool)

    stands = {
        "CUDAGraph": lambda: SimpleNamespace(reset=lambda: left.resets.append(1)),
        "graph": Capture,
        "graph_pool_handle": lambda: (0, 1),
        "synchronize": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda: left.stream,
        "set_stream": lambda stream: setattr(left, "stream", stream),
        "default_generators": (left.generator,),
    }
    for name, value in stands.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: left.pools.remove(pool), raising=False)
    monkeypatch.setattr(capture, "FAILED", [])
    return left


def work(inputs):
    raise ValueError("a number cannot be read back")


@pytest.mark.parametrize("pool", [None, (0, 5)])
def test_after_a_capture_that_failed_all_is_as_before(failing, pool):
    with pytest.raises(RuntimeError, match="previous error during capture") as raised:
        capture.Graph(work, {"x": torch.ones(2)}, pool, "aside")
    assert isinstance(raised.value.__context__, ValueError)
    assert failing.stream == "before"
    assert (failing.generator.offset, failing.generator.capturing) == (12, False)
    assert not failing.under_way
    assert not failing.pools
    assert len(capture.FAILED) == len(failing.resets) == 1


@pytest.mark.parametrize("missing", ["_cuda_endAllocateToPool", "_cuda_releasePool"])
def test_where_torch_does_not_offer_to_end_it_the_rest_is_put_right(failing, monkeypatch, missing):
    monkeypatch.delattr(torch._C, missing)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture.Graph(work, {}, None, "aside")
    assert failing.stream == "before"
    assert not failing.generator.capturing


def test_a_pool_that_the_capture_gave_back_itself_is_not_given_back_twice(failing):
    failing.pools.append((0, 3))
    capture.mend(torch.cuda.CUDAGraph(), (0, 3), "before")
    assert failing.pools == [(0, 3)]
