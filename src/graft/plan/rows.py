"""How long rows are, in tokens: from a data file by the model's own tokenizer, or assumed where there is none.

Of more than SAMPLE rows as many are tokenised, evenly spread, and the LONGEST by characters besides, since the longest row decides what a
step holds. Lengths are of whole rows, prompt and answer, as training has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graft import data

SAMPLE, LONGEST = 1000, 32
ASSUMED = 512  # tokens a row, without data


@dataclass(frozen=True)
class Rows:
    """`count` rows (0: not known), token `lengths` in ascending order (of a sample), and the share of tokens that is trained on.

    `answer` are the tokens of the longest answer: rows cannot be cut below it. Without a `source` all of it is assumed.
    """

    count: int = 0
    lengths: tuple[int, ...] = (ASSUMED,)
    supervised: float = 1.0
    answer: int = 0
    source: str = ""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.lengths[-1]

    @property
    def mean(self) -> float:
        """Tokens of a row."""
        return sum(self.lengths) / len(self.lengths)

    def trained(self, most: int) -> float:
        """The largest share of positions that a batch of rows cut at `most` can train on: every row has the longest answer."""
        return min(1.0, self.answer / most) if self.source else 1.0

    def share(self, part: float) -> int:
        """The length that this part of the rows does not exceed."""
        return self.lengths[min(int(part * len(self.lengths)), len(self.lengths) - 1)]

    def padded(self, batch: int, most: int, window: int, multiple: int = 1) -> float:
        """Mean length of a batch of so many rows cut at `most`, which training pads to its longest row, up to a multiple.

        Rows of like length share a batch: of a window of random rows, sorted, each batch takes the next ones (graft.data.batches), so
        that its longest is expected where its last row stands among the window's.
        """
        window = max(batch, min(window, (self.count or window) // batch * batch))
        ends = [self.share(end / (window + 1)) for end in range(batch, window + 1, batch)]
        top = min(self.longest, most)
        return sum(max(min(end, top), min(-(-end // multiple) * multiple, top)) for end in ends) / len(ends)


def rows_of(source: str, tokenizer: Any, examples: int | None = None) -> Rows:
    """The rows of a data file or hub data set; `examples` overrides how many there are. Raises DataError as reading and tokenising do."""
    table = data.read(source, bad_rows="skip")
    step = max(1, len(table.rows) // SAMPLE)
    spread = table.rows[::step]
    extra = sorted(table.rows, key=characters)[-LONGEST:] if step > 1 else []
    found = list(data.tokenise([*spread, *extra], tokenizer).examples)
    sample, longest = found[: len(spread)], max(found, key=lambda one: len(one.ids))
    lengths = sorted(len(one.ids) for one in (*sample, longest))
    share = sum(one.trained for one in sample) / sum(len(one.ids) for one in sample)
    return Rows(examples or len(table.rows), tuple(lengths), share, max(one.trained for one in found), source)


def characters(row: data.Row) -> int:
    """How long a row is to read."""
    return len(row.completion) + sum(len(turn.content) for turn in row.messages)


def assumed(examples: int | None, lengths: Sequence[int] = (ASSUMED,)) -> Rows:
    """So many rows of a length that was not measured."""
    return Rows(examples or 0, tuple(lengths))
