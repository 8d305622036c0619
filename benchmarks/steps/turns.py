"""Turns on a card: processes that prepare at the same time, of which one at a time is measured, with nothing else on the card then.

Most of a point's time is importing and compiling, in which a card does little. So a process prepares beside others, which hold the lock of
their card together, and is timed while it holds the lock alone; what it prepared stays in the card's memory meanwhile.
"""

import fcntl
from pathlib import Path

from steps.points import LOW_RANK, Point

WEIGHTS = {"7b": 13.5, "3b": 8.5, "1b": 3.0}
"""GiB of a shape's weights in bfloat16, and what a process holds beside."""
TRAINED = {"full": 1.05, "last-k": 0.25}
"""How much as large the masters and gradients of whole modules are."""
RANKED = 0.002
"""And those of low-rank branches on all linear maps, for each rank: masters, gradients and what is put beside the weights."""
KEPT, REMADE = 3.6, {"7b": 1.0, "3b": 2.0, "1b": 1.0}
"""GiB for each 1024 tokens: all that the backward pass reads kept, and with checkpointing, where logits are most."""
HUNGRY = {"peft-dora": 6.0, "peft-dora-best": 2.5, "peft-lora": 3.0, "dora-eager": 3.0, "dora-plain": 4.0, "dora-apart": 1.15}
"""How many times as much some rows keep, at most."""
COMPILED, BEST, MORE, DROPPED = 1.12, 1.45, 2.2, 1.4
"""How many times as much others do: compiled, HF PEFT compiled, not compiled; and what HF PEFT's dropout adds."""
RECORDS, SPARE = 4096, 1.3
"""Tokens a step up to which low-rank methods may record by themselves, for which they must see room for as much again."""


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


def gibibytes(point: Point) -> float:
    """What a point may take of a card at most, in GiB, by what such points took."""
    plain = point.row.endswith(("-eager", "-plain")) or point.row == f"peft-{point.method}"
    usual = MORE if plain else BEST if point.row.startswith("peft") else COMPILED
    again = SPARE if point.row in LOW_RANK and point.batch * point.tokens <= RECORDS else 1.0
    dropped = DROPPED if point.dropout and point.row.startswith("peft") else 1.0
    each = (REMADE.get(point.shape, 1.0) if point.checkpointing else KEPT) * HUNGRY.get(point.row, usual) * dropped * again
    trained = TRAINED.get(point.method, RANKED * point.rank)
    return WEIGHTS.get(point.shape, 1.0) * (1 + trained) + each * point.batch * point.tokens / 1024
