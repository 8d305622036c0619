"""What a data set is once it is read: rows, the table that holds them, and the rows that could not be used.

A `Row` is one thing to learn: the turns that come before (`messages`) and the text to produce (`completion`).
Everything else a row carries is for scoring: `choices` and `gold` (rank the candidates), `references` (several right texts),
`answer` (the final answer), `label` (the class).
"""

import random
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, replace

from graft.errors import DataError


@dataclass(frozen=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example. `messages` ends with a user turn, and is empty where the row is plain text; `where` is "train.jsonl:31"."""

    id: str
    messages: tuple[Message, ...]
    completion: str
    choices: tuple[str, ...] = ()
    gold: int | None = None
    references: tuple[str, ...] = ()
    answer: str | None = None
    label: str | None = None
    where: str = ""

    @property
    def prompt_key(self) -> Hashable:
        """What makes two rows ask the same thing: the turns before the completion, or the text itself where there are none."""
        return self.messages or self.completion


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: "train.jsonl:31", the column at fault ("" for the whole line), and why."""

    where: str
    column: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}, {self.column}: {self.reason}" if self.column else f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Table:
    """The rows of one file, in its order; `sha256` is of the file's bytes, `bad` the rows that were left out on request."""

    rows: tuple[Row, ...]
    path: str
    sha256: str
    bad: tuple[BadRow, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set: every distinct label of the rows, sorted; empty where rows have none."""
        return tuple(sorted({row.label for row in self.rows if row.label is not None}))

    @property
    def duplicates(self) -> int:
        """Rows whose prompt and completion both occurred earlier in the table."""
        return len(self.rows) - len({(row.messages, row.completion) for row in self.rows})


def overlap(train: Table, held_out: Table) -> int:
    """How many rows of `held_out` ask something that `train` also asks (their scores are then partly memory)."""
    seen = {row.prompt_key for row in train.rows}
    return sum(row.prompt_key in seen for row in held_out.rows)


def split(table: Table, part: float | int, seed: int) -> tuple[Table, Table]:
    """Hold rows out: returns (the rest, the part held out), both in the table's order, the same for the same seed.

    `part` is a fraction (a float below 1) or a count (an int). Rows that share a prompt stay on one side, for otherwise a model
    is validated on what it was trained on; where that stops the count from being met exactly the part is a little smaller.
    Raises DataError where one side would be empty.
    """
    count = round(len(table) * part) if isinstance(part, float) else part
    if not 0 < count < len(table):
        raise DataError(f"{table.path}: cannot hold out {part} of {len(table)} rows: both sides need at least one row")
    held = held_out_indices(table, count, seed)
    if not held:
        raise DataError(f"{table.path}: cannot hold out {count} rows: every prompt is shared by more rows than that")
    rest = tuple(row for index, row in enumerate(table.rows) if index not in held)
    part_rows = tuple(row for index, row in enumerate(table.rows) if index in held)
    return replace(table, rows=rest, bad=()), replace(table, rows=part_rows, bad=())


def held_out_indices(table: Table, count: int, seed: int) -> set[int]:
    """Whole groups of rows with one prompt, drawn in random order as long as they fit in `count`."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, row in enumerate(table.rows):
        groups[row.prompt_key].append(index)
    drawn = list(groups.values())
    random.Random(seed).shuffle(drawn)
    held: set[int] = set()
    for group in drawn:
        if len(held) + len(group) <= count:
            held.update(group)
    return held
