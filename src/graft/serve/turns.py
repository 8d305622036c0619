"""How long a thread may hold Python's lock while others wait: shorter while an engine lives.

The engine's thread gives the lock up whenever it waits or computes outside Python, many times a step, and gets it back when whoever took it
has had its turn: with Python's 5 ms, steps of 2.5 ms took 8 while adapters were loaded, and one in twenty took 22.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TURN = 0.0005  # seconds
LOCK = threading.Lock()
BEFORE: list[float] = []
"""What it was before each of those that live now."""


@contextmanager
def shortened() -> Iterator[None]:
    """Within it, in all threads, turns are TURN at most; with the last of those that overlap they are as before the first."""
    with LOCK:
        BEFORE.append(BEFORE[0] if BEFORE else sys.getswitchinterval())
        sys.setswitchinterval(min(TURN, sys.getswitchinterval()))
    try:
        yield
    finally:
        with LOCK:
            before = BEFORE.pop()
            if not BEFORE:
                sys.setswitchinterval(before)
