"""Ctrl-C that waits for a safe place.

An interrupt in the middle of an optimizer step leaves some tensors updated and others not. Inside an `Interrupt` block the
first Ctrl-C is only remembered; `check()`, called between steps, raises it. A second Ctrl-C is raised at once.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SAID = b"\nStopping after this step; Ctrl-C again stops at once.\n"


class Interrupt:
    """`with Interrupt() as interrupt: ... interrupt.check()`. Outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Callable[[int, FrameType | None], Any] | int | None = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None:
            self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self, where: str = "") -> None:
        """Raise the remembered KeyboardInterrupt, with `where` as its text, if there is one."""
        if self.asked:
            raise KeyboardInterrupt(where)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt("at once, in the middle of a step")
        self.asked = True
        os.write(2, SAID)
