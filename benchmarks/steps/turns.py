"""Turns on a card: processes that prepare at the same time, of which one at a time is measured, with nothing else on the card then.

Most of a point's time is importing and compiling, in which a card does little. So a process prepares beside others, which hold the lock of
their card together, and is timed while it holds the lock alone; what it prepared stays in the card's memory meanwhile.
"""

import fcntl
from pathlib import Path

from steps.points import Point

BESIDE = 4096  # tokens of a step of the largest shape, all activations kept, of which two fit on a card of 80 GB


class Turns:
    """The lock of a card, a file; none for a process that has the card to itself."""

    def __init__(self, path: Path | None) -> None:
        self.file = path.open("w") if path else None

    def prepare(self) -> None:
        """Wait until no other process is timed."""
        if self.file:
            fcntl.flock(self.file, fcntl.LOCK_SH)

    def take(self) -> None:
        """Wait until every other process that shares the card prepares no more, and keep the card until this process ends."""
        if self.file:
            fcntl.flock(self.file, fcntl.LOCK_EX)  # gives up the shared lock first, so two that wait do not wait for each other


def is_large(point: Point) -> bool:
    """Whether a point may take more than half of a card's memory, so that it must have the card alone from the start."""
    kept = 0 if point.checkpointing else point.batch * point.tokens
    hungry = point.row in ("peft-lora", "peft-dora", "peft-dora-best") or point.method == "full"
    return point.shape == "7b" and (hungry or kept > BESIDE)
