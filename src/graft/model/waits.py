"""What work on a card asks of the host: to launch its kernels one by one, and to read numbers back.

    host     seconds until the host has launched everything
    card     seconds from the first of it to the last, on the card
    reads    the place in the code where the host first waited for a number, as far as torch.cuda.set_sync_debug_mode sees it

The card was idle before, and nothing waits inside, so that where the host is slower than the card both are the host's time.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

HOST = 0.5
"""Of the card's time: where the host needs less, the card never waits for it. Not 1: the same launches take up to twice as long on another
host, or beside other work.
"""
SEEN = "called a synchronizing CUDA operation"  # how torch's warning begins


@dataclass
class Watch:
    """What was seen of work: seconds, and the first place that reads a number back, if any does."""

    host: float = 0.0
    card: float = 0.0
    reads: str = ""

    @property
    def pays(self) -> bool:
        """Whether the host's part matters: whether the work is faster when the host launches it with one call."""
        return self.host > HOST * self.card


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch the block's work on the current stream; what was seen is there after it. Waits for the card before and after."""
    seen = Watch()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    with reading(seen):
        started = time.perf_counter()
        marks[0].record()
        yield seen
        marks[1].record()
        seen.host = time.perf_counter() - started
    torch.cuda.synchronize()
    seen.card = marks[0].elapsed_time(marks[1]) / 1000


@contextmanager
def reading(seen: Watch) -> Iterator[None]:
    """Note where the block first waits for a number. All other warnings are shown after it."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=SEEN)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(before)
    finally:
        for each in caught:
            if not str(each.message).startswith(SEEN):
                warnings.showwarning(each.message, each.category, each.filename, each.lineno, each.file, each.line)
            elif not seen.reads:
                seen.reads = f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}"
