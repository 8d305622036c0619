"""What the base does untrained: asked outright (zero-shot), and with solved examples before the question (in-context).

The number of examples k is the one with the best validation score among those that fit in the model's context; the smaller
wins a tie. The examples are training rows drawn by the seed, the same for every question. They cost context positions and time
with every question, and the record says how many: the mean over the test rows, and a forward over 128 tokens behind them.
"""

import random
from collections.abc import Sequence
from statistics import fmean

from graft.compare.latency import LENGTH, forward_ms
from graft.compare.trials import Bench, Fields, candidates, scored
from graft.compare.wording import lower_is_better
from graft.data import Row, prompts, tokenise
from graft.errors import DataError
from graft.evaluate import score
from graft.model.positions import room_for_text

JUDGED = 50  # validation rows that choose k, at most


def zero_shot(bench: Bench) -> Fields:
    """Score the base with the prompt alone; the record's fields."""
    model = bench.loaded.model
    return scored(bench, model) | untrained(bench, 0) | {"latency_ms": {"unmerged": forward_ms(model), "merged": None}}


def in_context(bench: Bench) -> Fields:
    """Choose k on validation rows, then score the base with k examples; the record's fields. Raises DataError if none fits."""
    drawn = examples(bench)
    possible = [count for count in bench.config.shots if fits(bench, drawn[:count], count)]
    if not possible:
        raise DataError("no in-context example fits: the rows are plain text, or too long for the model's context.")
    judged = {count: validated(bench, drawn[:count]) for count in possible} if len(possible) > 1 else {}
    sign = -1 if lower_is_better(bench.metric) else 1
    count = max(possible, key=lambda k: (sign * judged.get(k, 0.0), -k))
    shots = drawn[:count]
    positions = longer_by(bench, shots)
    length = min(LENGTH + positions, room_for_text(bench.loaded.model, ()))
    return {
        **scored(bench, bench.loaded.model, shots),
        **untrained(bench, positions),
        "shots": count,
        "config": {"shots": count, "validation": {str(k): value for k, value in judged.items()}},
        "validation_score": judged.get(count),
        "latency_ms": {"unmerged": forward_ms(bench.loaded.model, length=length), "merged": None},
    }


def untrained(bench: Bench, positions: int) -> Fields:
    """What holds of every baseline."""
    return {"trainable_parameters": 0, "adapter_bytes": 0, "context_positions": positions, "seed": 0, "gated": bench.gated}


def examples(bench: Bench) -> tuple[Row, ...]:
    """Training rows to show, as many as the largest k asks for, in random order."""
    rows = [row for row in bench.material.train.rows if row.messages]
    most = min(len(rows), max(bench.config.shots, default=0))
    return tuple(random.Random(bench.config.seed).sample(rows, most))


def judges(bench: Bench) -> tuple[Row, ...]:
    """The validation rows that choose k: never more than the test rows that are scored."""
    return bench.material.validation.rows[: min(JUDGED, len(bench.material.scored(bench.bounds)))]


def validated(bench: Bench, shots: Sequence[Row]) -> float:
    """The base's validation score with some examples."""
    tokenizer, size = bench.loaded.tokenizer, bench.config.batch_size
    rows = judges(bench)
    labels = candidates(bench.material)
    return score(bench.loaded.model, tokenizer, rows, metric=bench.metric, batch_size=size, shots=shots, labels=labels).value


def fits(bench: Bench, shots: Sequence[Row], count: int) -> bool:
    """Whether there are so many examples and they leave room for every question and its answer."""
    if len(shots) < count:
        return False
    rows = [*bench.material.scored(bench.bounds), *judges(bench)]
    whole = tokenise(rows, bench.loaded.tokenizer, shots=shots).examples
    answer = max(example.trained for example in whole)
    return max(len(example.ids) for example in whole) + answer <= room_for_text(bench.loaded.model, ())


def longer_by(bench: Bench, shots: Sequence[Row]) -> int:
    """By how many tokens the examples lengthen a question, on average over the test rows."""
    rows, tokenizer = bench.material.scored(bench.bounds), bench.loaded.tokenizer
    before = fmean(len(ids) for ids in prompts(rows, tokenizer))
    return round(fmean(len(ids) for ids in prompts(rows, tokenizer, shots)) - before)
