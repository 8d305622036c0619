"""The rows of a comparison: what is trained on, what chooses learning rates, what is scored; and how they are kept apart.

Validation rows are held out of the training file (a tenth, at most 200), so no test row ever chooses anything. Without a file of
test rows a fifth, at most 500, is held out for them first. Rows with one prompt stay on one side. All draws follow the seed.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

from graft.compare.settings import Bounds, CompareConfig
from graft.data import Example, Row, Table, overlap, prompts, read, split, tokenise
from graft.data.tokenise import counted
from graft.errors import DataError

VALIDATION = (10, 200)  # one row of so many, at most so many rows
TEST = (5, 500)
START_ROWS = 8  # training prompts that make the text virtual tokens start from


@dataclass(frozen=True)
class Material:
    """Rows and their tokens. `test` are all test rows in random order; a run scores the first `eval_limit` of them."""

    train: Table
    validation: Table
    test: Table
    examples: tuple[Example, ...]
    validation_examples: tuple[Example, ...]
    text: str
    notes: tuple[str, ...] = ()

    def scored(self, bounds: Bounds) -> tuple[Row, ...]:
        """The test rows that every run is scored on."""
        return self.test.rows[: bounds.eval_limit or None]

    def validated(self, config: CompareConfig, bounds: Bounds) -> tuple[Example, ...]:
        """The validation examples of every run: all, or as many as keep one evaluation cheap beside the training."""
        least = config.batch_size * config.grad_accum
        return self.validation_examples[: max(least, least * bounds.max_steps // 16)]

    @property
    def sha256(self) -> dict[str, str]:
        """Hashes of the files."""
        return {"train": self.train.sha256, "eval": self.test.sha256}


def gather(config: CompareConfig, tokenizer: Any) -> Material:
    """Read, split and tokenise. Raises DataError for files, rows or splits that cannot be used."""
    train = enough(read(config.data, bad_rows=config.bad_rows), 3 if config.eval_data is None else 2)
    notes = skipped(train)
    if config.eval_data is None:
        train, test = hold_out(train, TEST, config.seed)
    else:
        test = read(config.eval_data, bad_rows=config.bad_rows)
        notes += skipped(test)
    if shared := overlap(train, test):
        notes.append(f"{shared} test rows ask what a training row asks")
    train, validation = hold_out(train, VALIDATION, config.seed + 1)
    trained = tokenise(train.rows, tokenizer, config.max_length)
    validated = tokenise(shuffled(validation, config.seed).rows, tokenizer, config.max_length)
    notes += [note for note in (trained.note,) if note]
    test = shuffled(test, config.seed)
    text = starting_text(train, tokenizer)
    return Material(train, validation, test, trained.examples, validated.examples, text, tuple(notes))


def enough(table: Table, least: int) -> Table:
    """The training file as it was read. Raises DataError for fewer rows than there must be to train on and to hold out."""
    if len(table) < least:
        rows = counted(len(table), "row")
        raise DataError(f"{table.path} has {rows}; a comparison needs at least {least}: some to train on and some to hold out")
    return table


def hold_out(table: Table, share: tuple[int, int], seed: int) -> tuple[Table, Table]:
    """(the rest, the rows held out): one of `share[0]` rows, at most `share[1]`. Raises DataError where prompts are shared by too many."""
    one_of, most = share
    return split(table, max(1, min(most, len(table) // one_of)), seed)


def shuffled(table: Table, seed: int) -> Table:
    """The table in random order: files are often sorted by class, and the first rows are then no sample."""
    return replace(table, rows=tuple(random.Random(seed).sample(table.rows, len(table))))


def starting_text(train: Table, tokenizer: Any) -> str:
    """The first training prompts as the model reads them, in chat form; plain text rows as they are."""
    first = [row for row in train.rows[:START_ROWS] if row.messages]
    if not first:
        return "\n".join(row.completion for row in train.rows[:START_ROWS])
    return "".join(tokenizer.decode(ids) for ids in prompts(first, tokenizer))


def skipped(table: Table) -> list[str]:
    """A note on rows that were left out on request."""
    return [f"{len(table.bad)} bad rows of {table.path} were skipped, the first at {table.bad[0]}"] if table.bad else []
