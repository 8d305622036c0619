"""Metrics against hand-worked values, slow definitions and sacrebleu itself."""

import builtins

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import GraftError
from graft.evaluate import metrics


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [("a  b\n", ["a b"], 1.0), ("a b", ["c", "a b"], 1.0), ("A b", ["a b"], 0.0), ("", ["a"], 0.0)],
)
def test_exact_match(prediction, references, value):
    assert metrics.exact_match(prediction, references) == value


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("( 8 - 3 ) #### 5.0", "5", 1.0),
        ("#### 1,250", "1250.00", 1.0),
        ("#### $18.", "18", 1.0),
        ("first #### 4 then #### 5", "5", 1.0),
        ("#### -0", "0", 1.0),
        ("#### 1e3", "1000", 1.0),
        ("#### Paris ", "paris", 1.0),
        ("#### 5", "so #### 5", 1.0),
        ("5", "5", 0.0),
        ("#### 6", "5", 0.0),
        ("####", "5", 0.0),
        ("#### nan", "5", 0.0),
        ("#### 1e999999999", "5", 0.0),
        ("#### inf", "inf", 1.0),
    ],
)
def test_final_answer(prediction, answer, value):
    assert metrics.same_answer(prediction, answer) == value


def test_rouge_by_hand():
    found = metrics.rouge("The cat sat on the mat.", ["the cat lay on a mat"])
    # shared words: the, cat, on, mat of 6 and 6; shared pairs: "the cat" of 5 and 5; in order: the cat on mat
    assert found == pytest.approx({"rouge1": 4 / 6, "rouge2": 1 / 5, "rougeL": 4 / 6})
    assert metrics.rouge("x", ["the cat", "X"])["rouge1"] == 1.0
    assert metrics.rouge("", ["the cat"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert metrics.rouge("Größe 大小", ["größe 大小"])["rougeL"] == 1.0


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_common_subsequence_is_the_textbook_table(one, other):
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    assert metrics.common_subsequence(one, other) == table[-1][-1]


def test_bleu_and_chrf_are_sacrebleus_with_unequal_numbers_of_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions = ["the cat sat on the mat today", "a dog barked at the moon again"]
    references = [["the cat sat on a mat today", "a cat sat on the mat"], ["a dog barked at the moon"]]
    streams = [[references[0][0], references[1][0]], [references[0][1], None]]
    assert metrics.bleu(predictions, references).value == pytest.approx(sacrebleu.corpus_bleu(predictions, streams).score)
    assert metrics.chrf(predictions, references).value == pytest.approx(sacrebleu.corpus_chrf(predictions, streams).score)
    for metric, single in ((metrics.bleu, sacrebleu.sentence_bleu), (metrics.chrf, sacrebleu.sentence_chrf)):
        expected = [single(text, some).score for text, some in zip(predictions, references, strict=True)]
        assert metric(predictions, references).per_item == pytest.approx(expected)


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "sacrebleu":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(GraftError, match=r"graft-peft\[compare\]"):
        metrics.bleu(["a"], [["a"]])


def test_macro_f1_by_hand():
    # a: 1 of 2 said right, 1 of 2 found; b: 1 of 1 said right, 1 of 2 found; "x" is no class
    assert metrics.macro_f1(["a", "a", "b", "x"], ["a", "b", "b", "a"]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.macro_f1(["a", "b"], ["a", "b"]) == 1.0
