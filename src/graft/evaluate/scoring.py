"""Evaluate: how well a model does on rows, by one primary metric with a value for every row, and others beside it.

Generated metrics write each answer greedily and compare texts (`metrics`); accuracy ranks candidates by their log-likelihood after
the prompt, the end of the turn included (so that "card" does not beat "card arrival" for being its beginning); loss is the mean
negative log-likelihood of the trained tokens, in nats.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from graft.data import Row
from graft.errors import DataError
from graft.evaluate import metrics
from graft.evaluate.answer import Progress, evaluating, generate, text_positions
from graft.evaluate.likelihood import candidates, losses, ranked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS = ("exact_match", "final_answer", "accuracy", "rouge1", "rouge2", "rougeL", "bleu", "chrf", "loss")
LONG_ANSWER = 8
"""Answers of more words than this (their median) are texts to compare, not values to match."""


@dataclass(frozen=True)
class Scores:
    """A score. `value` is the mean of `per_item`, except for bleu and chrf, which have a value of their own for the corpus.

    `predictions` are the generated texts or the chosen candidates (none for loss); `truncated` rows did not fit in the model's context.
    """

    metric: str
    value: float
    per_item: tuple[float, ...]
    others: Mapping[str, float]
    predictions: tuple[str, ...]
    truncated: int = 0


def score(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    metric: str = "auto",
    batch_size: int = 16,
    shots: Sequence[Row] = (),
    labels: Sequence[str] = (),
    length_normalised: bool = False,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score `model` on `rows`, each after the in-context examples `shots`; `progress(done, total)` is told as rows are done.

    `labels` is the candidate set of `accuracy` for rows without choices (left out: the completions of the rows themselves), and
    `length_normalised` ranks by log-likelihood per token. `max_new_tokens` left out follows the longest completion of the rows.
    The model's mode and settings are put back. Raises DataError for no rows, an unknown metric, or rows the metric cannot score.
    """
    metric = checked_metric(metric, rows)
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    with evaluating(model):
        if metric == "loss":
            return by_loss(model, tokenizer, rows, batch_size, shots, progress)
        if metric == "accuracy":
            return by_ranking(model, tokenizer, rows, batch_size, shots, labels, length_normalised, progress)
        texts, truncated = generate(model, tokenizer, rows, batch_size, shots, max_new_tokens, progress)
    return replace(by_text(metric, rows, texts), truncated=truncated)


def checked_metric(metric: str, rows: Sequence[Row]) -> str:
    """The metric to use, once it is known that it can score these rows."""
    if not rows:
        raise DataError("there are no rows to score")
    if metric == "auto":
        return choose_metric(rows)
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1)
        raise DataError(
            f"unknown metric '{metric}'" + (f": did you mean '{near[0]}'?" if near else f"; known are auto, {', '.join(METRICS)}")
        )
    unanswerable = next((row for row in rows if not row.messages), None)
    if unanswerable and metric != "loss":
        raise DataError(f"{unanswerable.where or unanswerable.id}: plain text has no prompt to answer; only loss can score it")
    return metric


def choose_metric(rows: Sequence[Row]) -> str:
    """The metric these rows ask for: loss of plain text, accuracy of choices, the final answer after ####, ROUGE-L of longer texts."""
    if any(not row.messages for row in rows):
        return "loss"
    if all(row.choices for row in rows):
        return "accuracy"
    if all(metrics.MARK in row.completion for row in rows):
        return "final_answer"
    long = median(len(row.completion.split()) for row in rows) > LONG_ANSWER
    if all(row.references for row in rows) or (long and not any(row.label for row in rows)):
        return "rougeL"
    return "exact_match"


def by_text(metric: str, rows: Sequence[Row], texts: Sequence[str]) -> Scores:
    """Score generated texts."""
    wanted = [row.references or (row.completion,) for row in rows]
    others: dict[str, float] = {}
    if metric == "exact_match":
        per_item = [metrics.exact_match(text, some) for text, some in zip(texts, wanted, strict=True)]
        if all(row.label is not None for row in rows):
            others["macro_f1"] = metrics.macro_f1([metrics.plain(text) for text in texts], [metrics.plain(row.completion) for row in rows])
    elif metric == "final_answer":
        per_item = [metrics.same_answer(text, row.answer or row.completion) for text, row in zip(texts, rows, strict=True)]
        others["exact_match"] = fmean(metrics.exact_match(text, some) for text, some in zip(texts, wanted, strict=True))
    else:
        return by_similarity(metric, wanted, texts)
    return Scores(metric, fmean(per_item), tuple(per_item), others, tuple(texts))


def by_similarity(metric: str, wanted: Sequence[Sequence[str]], texts: Sequence[str]) -> Scores:
    """ROUGE, BLEU and chrF: one is asked for, the others stand beside it (BLEU and chrF where sacrebleu is installed)."""
    rouges = [metrics.rouge(text, some) for text, some in zip(texts, wanted, strict=True)]
    found: dict[str, metrics.Corpus] = {}
    for name in ("rouge1", "rouge2", "rougeL"):
        values = tuple(one[name] for one in rouges)
        found[name] = metrics.Corpus(fmean(values), values)
    if metric in ("bleu", "chrf") or find_spec("sacrebleu"):
        found["bleu"], found["chrf"] = metrics.bleu(texts, wanted), metrics.chrf(texts, wanted)
    primary = found.pop(metric)
    return Scores(metric, primary.value, primary.per_item, {name: one.value for name, one in found.items()}, tuple(texts))


def by_ranking(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    batch_size: int,
    shots: Sequence[Row],
    labels: Sequence[str],
    length_normalised: bool,
    progress: Progress | None,
) -> Scores:
    """Accuracy of the likeliest candidate; the other way to rank (summed, or per token) stands beside it."""
    offered = candidates(rows, labels)
    best = ranked(model, tokenizer, rows, offered, batch_size, shots, progress)
    chosen = best.per_token if length_normalised else best.summed
    hits = {
        name: tuple(float(pick == some.gold) for pick, some in zip(picks, offered, strict=True))
        for name, picks in (("accuracy_sum", best.summed), ("accuracy_per_token", best.per_token))
    }
    per_item = hits["accuracy_per_token" if length_normalised else "accuracy_sum"]
    predictions = tuple(some.texts[pick] for pick, some in zip(chosen, offered, strict=True))
    others = {name: fmean(values) for name, values in hits.items()}
    if all(row.label is not None for row in rows):
        others["macro_f1"] = metrics.macro_f1(predictions, [some.texts[some.gold] for some in offered])
    return Scores("accuracy", fmean(per_item), per_item, others, predictions, best.truncated)


def by_loss(
    model: Any, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], batch_size: int, shots: Sequence[Row], progress: Progress | None
) -> Scores:
    """Loss per trained token, whose mean it is: a row's value is its summed loss over the mean number of trained tokens a row.

    A long row thus weighs more, as it does in training.
    """
    found = losses(model, tokenizer, rows, batch_size, shots=shots, max_length=text_positions(model), progress=progress)
    mean_tokens = fmean(found.tokens)
    per_item = tuple(nll / mean_tokens for nll in found.summed)
    per_row = fmean(nll / tokens for nll, tokens in zip(found.summed, found.tokens, strict=True))
    return Scores("loss", fmean(per_item), per_item, {"loss_per_row": per_row}, (), found.truncated)


def loss(model: Any, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], batch_size: int = 16) -> tuple[float, int]:
    """(mean negative log-likelihood of a trained token in nats, how many tokens are trained). Raises DataError for no rows."""
    if not rows:
        raise DataError("there are no rows to measure the loss of")
    with evaluating(model):
        found = losses(model, tokenizer, rows, batch_size, max_length=text_positions(model))
    return sum(found.summed) / sum(found.tokens), sum(found.tokens)
