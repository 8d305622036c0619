"""Likelihood: how probable a model finds given texts after given prompts; the loss of rows, and the ranking of candidate answers.

nll(row) = - sum over the trained tokens t of log p(t | everything before t)        in nats, the end token included
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graft.data import Example, Row, collate, tokenise
from graft.errors import DataError, ModelError
from graft.evaluate.answer import Progress, by_length, evaluating, padding, tell, text_positions
from graft.model import supervised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Losses:
    """Summed nll and number of trained tokens of every row, in order; `truncated` rows did not fit in the model's context."""

    summed: tuple[float, ...]
    tokens: tuple[int, ...]
    truncated: int = 0


@dataclass(frozen=True)
class Candidates:
    """The answers a row may have, and which is right."""

    texts: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Ranked:
    """For every row the index of its likeliest candidate, by summed log-likelihood and by log-likelihood per token.

    `truncated` rows did not fit in the model's context with each of their candidates.
    """

    summed: tuple[int, ...]
    per_token: tuple[int, ...]
    truncated: int = 0


def losses(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    batch_size: int = 16,
    *,
    shots: Sequence[Row] = (),
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Losses:
    """Each row's loss. Rows longer than `max_length` tokens are cut (prompts on the left, then completions on the right) and counted."""
    tokenised = tokenise(rows, tokenizer, max_length, truncate="cut", shots=shots)
    summed = summed_nll(model, tokenised.examples, padding(tokenizer), batch_size, progress)
    return Losses(tuple(summed), tuple(example.trained for example in tokenised.examples), sum(tokenised.changed))


def summed_nll(model: Any, examples: Sequence[Example], pad_id: int, batch_size: int, progress: Progress | None = None) -> list[float]:
    """The summed nll of each example's trained tokens, in order."""
    found, done = [0.0] * len(examples), 0
    with evaluating(model):
        for batch in by_length([len(example.ids) for example in examples], batch_size):
            values = batch_nll(model, collate([examples[index] for index in batch], pad_id))
            for index, value in zip(batch, values.tolist(), strict=True):
                found[index] = value
            done += len(batch)
            tell(progress, done, len(examples))
    return found


def batch_nll(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed nll of each row of a batch [B, T], float64 [B] on the CPU."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    nll, rows = supervised.token_losses(model, inputs)
    return torch.zeros(len(inputs["labels"]), dtype=torch.float64).index_add(0, rows.cpu(), nll.double().cpu())


def candidates(rows: Sequence[Row], labels: Sequence[str] = ()) -> list[Candidates]:
    """What each row can be answered with: its own choices, or the label set (left out: every completion of the rows, sorted)."""
    common = tuple(labels) or tuple(sorted({row.completion for row in rows if not row.choices}))
    offered = []
    for row in rows:
        texts = row.choices or common
        gold = row.gold if row.choices else next((index for index, text in enumerate(texts) if text == row.completion), None)
        if gold is None:
            raise DataError(f"{row.where or row.id}: accuracy needs the right candidate, but '{row.completion[:40]}' is not among them")
        if len(texts) < 2:
            raise DataError(f"{row.where or row.id}: accuracy needs at least two candidates to rank, the only one is '{texts[0][:40]}'")
        offered.append(Candidates(texts, gold))
    return offered


def ranked(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    offered: Sequence[Candidates],
    batch_size: int = 16,
    shots: Sequence[Row] = (),
    progress: Progress | None = None,
) -> Ranked:
    """The likeliest candidate of every row; of equals the first. Raises ModelError where a candidate's loss is not finite."""
    asked = [replace(row, completion=text) for row, some in zip(rows, offered, strict=True) for text in some.texts]
    tokenised = tokenise(asked, tokenizer, text_positions(model), truncate="cut", shots=shots)
    examples = tokenised.examples
    total = len(examples)
    per_row = None if progress is None else lambda done, _: progress(done * len(rows) // total, len(rows))
    nll = summed_nll(model, examples, padding(tokenizer), batch_size, per_row)
    check_finite(nll, asked)
    start, summed, per_token, truncated = 0, [], [], 0
    for some in offered:
        end = start + len(some.texts)
        sums = nll[start:end]
        means = [value / example.trained for value, example in zip(sums, examples[start:end], strict=True)]
        summed.append(sums.index(min(sums)))
        per_token.append(means.index(min(means)))
        truncated += any(tokenised.changed[start:end])
        start = end
    return Ranked(tuple(summed), tuple(per_token), truncated)


def check_finite(nll: Sequence[float], rows: Sequence[Row]) -> None:
    """Raise ModelError unless each row's loss is finite: a NaN is below nothing, so the first candidate would always win."""
    bad = list(dict.fromkeys(row.where or row.id for value, row in zip(nll, rows, strict=True) if not math.isfinite(value)))
    if bad:
        where = bad[0] + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
        way_out = "If it was trained, train it again with a lower learning rate; if it is held in float16, hold it in bfloat16 or float32"
        raise ModelError(f"the model's loss is not finite on the candidates of {where}, so they cannot be ranked. {way_out}")
