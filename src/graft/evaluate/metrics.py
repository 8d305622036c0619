"""Metrics as pure functions of texts: what was predicted, and what would have been right.

    exact match    1 where the texts are equal once runs of whitespace are one space (case counts)
    final answer   1 where what follows the last "####" is equal, numbers compared as numbers ("1,250.0" = "1250", "$18." = "18")
    ROUGE-N, -L    F1 of shared n-grams, of the longest common subsequence, over lowercase words; Lin 2004, https://aclanthology.org/W04-1013
    BLEU, chrF     sacrebleu's, 0 to 100; Post 2018, https://aclanthology.org/W18-6319
    macro-F1       mean over the true classes of each one's F1

All are 0 to 1 but BLEU and chrF. With several references a text metric takes the best of them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from graft.errors import GraftError

MARK = "####"
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Corpus:
    """A metric with a value of its own for the whole corpus, which is not the mean of its values for single texts."""

    value: float
    per_item: tuple[float, ...]


def plain(text: str) -> str:
    """A text with every run of whitespace as one space, none at the ends."""
    return " ".join(text.split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the prediction is one of the references, else 0.0."""
    return float(plain(prediction) in {plain(reference) for reference in references})


def final_answer(text: str) -> str | None:
    """What follows the last "####", as `normal_answer` writes it; None where there is no such mark."""
    _, mark, answer = text.rpartition(MARK)
    return normal_answer(answer) if mark else None


def normal_answer(answer: str) -> str:
    """A number in its shortest form, without currency sign, thousands commas and final period; any other text lowercase."""
    text = plain(answer).casefold()
    number = text.strip("$€£ ").removesuffix(".").replace(",", "")
    try:
        value = Decimal(number)
    except InvalidOperation:
        return text
    if not value.is_finite() or abs(value.adjusted()) > 30:
        return text
    return format(value.normalize() + Decimal(0), "f")


def same_answer(prediction: str, answer: str) -> float:
    """1.0 where the prediction's final answer equals `answer` (itself a bare answer, or a text with the mark)."""
    wanted = final_answer(answer) if MARK in answer else normal_answer(answer)
    return float(final_answer(prediction) == wanted)


def words(text: str) -> list[str]:
    """The lowercase words of a text."""
    return WORD.findall(text.casefold())


def f1(shared: int, predicted: int, wanted: int) -> float:
    """The harmonic mean of shared/predicted and shared/wanted; 0.0 where nothing is shared."""
    return 2 * shared / (predicted + wanted) if shared else 0.0


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """rouge1, rouge2 and rougeL of one text, each the best over the references."""
    found = words(prediction)
    each = [rouge_pair(found, words(reference)) for reference in references]
    return {name: max(one[name] for one in each) for name in ("rouge1", "rouge2", "rougeL")}


def rouge_pair(found: list[str], wanted: list[str]) -> dict[str, float]:
    """ROUGE of one list of words against another."""
    scores = {}
    for size in (1, 2):
        one, other = ngrams(found, size), ngrams(wanted, size)
        scores[f"rouge{size}"] = f1((one & other).total(), one.total(), other.total())
    return {**scores, "rougeL": f1(common_subsequence(found, wanted), len(found), len(wanted))}


def ngrams(items: list[str], size: int) -> Counter[tuple[str, ...]]:
    """How often each run of `size` words occurs."""
    return Counter(zip(*(items[start:] for start in range(size)), strict=False))


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    Bit i of `free` is cleared where prefix i of `one` gains a match: a row of the usual table in one integer, so that a long text
    costs one big-integer step a word (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for index, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << index
    everything = (1 << len(one)) - 1
    free = everything
    for item in other:
        hits = free & places.get(item, 0)
        free = (free + hits | free - hits) & everything
    return len(one) - free.bit_count()


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """Corpus BLEU and each text's sentence BLEU (effective order), 0 to 100."""
    metrics = sacrebleu()
    single = metrics.BLEU(effective_order=True)
    return of_corpus(metrics.BLEU(), single, predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """Corpus chrF and each text's own, 0 to 100."""
    metric = sacrebleu().CHRF()
    return of_corpus(metric, metric, predictions, references)


def of_corpus(whole: Any, single: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """A sacrebleu metric of a corpus and of each text in it; texts with fewer references are padded with None, which it skips."""
    most = max(len(some) for some in references)
    streams = [[some[index] if index < len(some) else None for some in references] for index in range(most)]
    value = whole.corpus_score(list(predictions), streams).score
    each = (single.sentence_score(text, list(some)).score for text, some in zip(predictions, references, strict=True))
    return Corpus(float(value), tuple(float(score) for score in each))


def sacrebleu() -> Any:
    """The metrics of sacrebleu. Raises GraftError where it is not installed."""
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise GraftError("BLEU and chrF need sacrebleu: pip install 'graft-peft[compare]'") from error
    return metrics


def macro_f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    """The mean of each true class's F1; a prediction outside the classes is wrong for its row and belongs to none."""
    hits = Counter(one for one, other in zip(predicted, wanted, strict=True) if one == other)
    said, true = Counter(predicted), Counter(wanted)
    return sum(f1(hits[label], said[label], true[label]) for label in true) / max(1, len(true))
