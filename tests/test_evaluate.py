"""Evaluation against slow, plain oracles: one row at a time, no cache, the whole vocabulary at every position."""

import copy
import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

import graft
from graft.data import Message, Row, prompt_ids, tokenise
from graft.errors import DataError, ModelError
from graft.evaluate import Scores, choose_metric, likelihood, loss, metrics, score, scoring
from graft.evaluate.answer import generate


def row(prompt="Where?", completion="Here.", **rest):
    return Row("1", (Message("user", prompt),), completion, **rest)


ROWS = [
    row("Where is my card?", "card arrival", label="card arrival"),
    row("x", "card", label="card"),
    row("Is the review positive or negative? " * 2, "positive", label="positive"),
    row("a question", "card", label="card"),
    row("another one", "positive", label="positive"),
]
PLACED = [replace(one, where=f"test.jsonl:{line}") for line, one in enumerate(ROWS, 1)]


@torch.no_grad()
def nll(model, ids, start):
    """Summed negative log-likelihood of ids[start:], from the full logits of one row."""
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(logits[index - 1, ids[index]].item() for index in range(start, len(ids)))


@torch.no_grad()
def written(model, tokenizer, ids, new):
    """Greedy, one token at a time, no cache."""
    ids, out = list(ids), []
    for _ in range(new):
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        out.append(token)
    return tokenizer.decode(out, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_generation_is_greedy_decoding_row_by_row(tiny_llama, tiny_tokenizer, batch_size):
    texts, cut = generate(tiny_llama, tiny_tokenizer, ROWS, batch_size, max_new_tokens=6)
    expected = [written(tiny_llama, tiny_tokenizer, prompt_ids(one, tiny_tokenizer), 6) for one in ROWS]
    assert texts == expected
    assert any(texts)
    assert cut == 0


def test_the_models_own_sampling_settings_are_ignored_and_put_back(tiny_llama, tiny_tokenizer):
    model = copy.deepcopy(tiny_llama).train()
    own = GenerationConfig(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, max_length=3)
    model.generation_config = own
    model.model.layers[0].eval()
    expected = generate(tiny_llama, tiny_tokenizer, ROWS, 2, max_new_tokens=5)
    assert generate(model, tiny_tokenizer, ROWS, 2, max_new_tokens=5) == expected
    assert model.generation_config is own
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training


def test_generated_length_follows_the_data(tiny_llama, tiny_tokenizer, monkeypatch):
    asked = []
    model = copy.deepcopy(tiny_llama)
    real = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: asked.append(model.generation_config.max_new_tokens) or real(**inputs))
    generate(model, tiny_tokenizer, ROWS, 8)
    longest = max(example.trained for example in tokenise(ROWS, tiny_tokenizer).examples)
    assert asked == [math.ceil(1.2 * longest) + 4]


def test_a_prompt_longer_than_the_context_loses_its_left_end_and_is_counted(tiny_llama, tiny_tokenizer):
    rows = [row("x" * 600, "yes"), ROWS[1]]
    result = score(tiny_llama, tiny_tokenizer, rows, max_new_tokens=6)
    ids = prompt_ids(rows[0], tiny_tokenizer)[-(512 - 6) :]
    assert result.predictions[0] == written(tiny_llama, tiny_tokenizer, ids, 6)
    assert result.truncated == 1


def test_a_leading_block_of_reasoning_is_not_the_answer():
    from graft.evaluate.answer import spoken

    assert spoken("<think>\nhm </think>\n\ncard ") == "card"
    assert spoken("card <think>") == "card <think>"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_is_the_mean_over_trained_tokens(tiny_llama, tiny_tokenizer, batch_size):
    examples = tokenise(ROWS, tiny_tokenizer).examples
    sums = [nll(tiny_llama, one.ids, one.supervised) for one in examples]
    tokens = sum(one.trained for one in examples)
    value, count = loss(tiny_llama, tiny_tokenizer, ROWS, batch_size)
    assert count == tokens
    assert value == pytest.approx(sum(sums) / tokens, rel=1e-5)
    result = score(tiny_llama, tiny_tokenizer, ROWS, metric="loss", batch_size=batch_size)
    assert result.value == pytest.approx(value)
    assert result.value == pytest.approx(fmean(result.per_item))
    assert [one / result.per_item[0] for one in result.per_item] == pytest.approx([one / sums[0] for one in sums], rel=1e-4)
    assert result.others["loss_per_row"] == pytest.approx(fmean(s / e.trained for s, e in zip(sums, examples, strict=True)), rel=1e-5)


def test_loss_of_plain_text_counts_all_but_the_first_token(tiny_llama, tiny_tokenizer):
    text = Row("1", (), "Once upon a time.")
    (example,) = tokenise([text], tiny_tokenizer).examples
    result = score(tiny_llama, tiny_tokenizer, [text])
    assert result.metric == "loss"
    assert result.value == pytest.approx(nll(tiny_llama, example.ids, 1) / (len(example.ids) - 1), rel=1e-5)


def test_loss_after_shots_differs(tiny_llama, tiny_tokenizer):
    shots = [row("a", "b")]
    (example,) = tokenise(ROWS[:1], tiny_tokenizer, shots=shots).examples
    result = score(tiny_llama, tiny_tokenizer, ROWS[:1], metric="loss", shots=shots)
    assert result.value == pytest.approx(nll(tiny_llama, example.ids, example.supervised) / example.trained, rel=1e-5)


def best(model, tokenizer, prompt, texts, normalised):
    examples = tokenise([row(prompt, text) for text in texts], tokenizer).examples
    values = [nll(model, one.ids, one.supervised) / (one.trained if normalised else 1) for one in examples]
    return values.index(min(values))


@pytest.mark.parametrize("normalised", [False, True])
def test_accuracy_ranks_each_rows_choices(tiny_llama, tiny_tokenizer, normalised):
    sets = [("yes", "no"), ("a long one that goes on", "no", "x"), ("card", "card arrival")]
    rows = [row(f"question {i}", texts[0], choices=texts, gold=0) for i, texts in enumerate(sets)]
    result = score(tiny_llama, tiny_tokenizer, rows, batch_size=2, length_normalised=normalised)
    chosen = [best(tiny_llama, tiny_tokenizer, f"question {i}", texts, normalised) for i, texts in enumerate(sets)]
    assert result.metric == "accuracy"
    assert result.predictions == tuple(texts[pick] for texts, pick in zip(sets, chosen, strict=True))
    assert result.per_item == tuple(float(pick == 0) for pick in chosen)
    assert result.value == result.others["accuracy_per_token" if normalised else "accuracy_sum"] == fmean(result.per_item)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_candidates_are_not_ranked_by_losses_that_are_not_finite(tiny_llama, tiny_tokenizer, value):
    """The first of them would be chosen for every row, and be right wherever it is."""
    broken = copy.deepcopy(tiny_llama)
    broken.lm_head.weight.data.fill_(value)
    with pytest.raises(ModelError, match=r"loss is not finite on the candidates of test\.jsonl:1 and 4 more, so.*lower learning rate"):
        score(broken, tiny_tokenizer, PLACED, metric="accuracy")


def test_one_answer_without_a_finite_loss_is_found_among_good_ones(tiny_llama, tiny_tokenizer, monkeypatch):
    nll = [1.0] * 3 * len(PLACED)
    nll[7] = math.nan  # not the first of its row, where comparing with it would hide it
    monkeypatch.setattr(likelihood, "summed_nll", lambda *args: nll)
    with pytest.raises(ModelError, match=r"on the candidates of test\.jsonl:3, so"):
        score(tiny_llama, tiny_tokenizer, PLACED, metric="accuracy")


def test_accuracy_over_a_label_set(tiny_llama, tiny_tokenizer):
    result = score(tiny_llama, tiny_tokenizer, ROWS, metric="accuracy")
    texts = ["card", "card arrival", "positive"]
    chosen = [texts[best(tiny_llama, tiny_tokenizer, one.messages[0].content, texts, False)] for one in ROWS]
    assert list(result.predictions) == chosen
    assert result.others["macro_f1"] == metrics.macro_f1(chosen, [one.completion for one in ROWS])
    wider = score(tiny_llama, tiny_tokenizer, ROWS, metric="accuracy", labels=[*texts, "an unheard of label"])
    assert len(wider.per_item) == len(ROWS)
    with pytest.raises(DataError, match="'card arrival' is not among them"):
        score(tiny_llama, tiny_tokenizer, ROWS, metric="accuracy", labels=["card", "positive"])
    with pytest.raises(DataError, match="at least two candidates"):
        score(tiny_llama, tiny_tokenizer, ROWS[1:2], metric="accuracy")


def test_progress_counts_rows_to_the_end(tiny_llama, tiny_tokenizer):
    for metric in ("exact_match", "accuracy", "loss"):
        told = []
        score(
            tiny_llama,
            tiny_tokenizer,
            ROWS,
            metric=metric,
            batch_size=2,
            progress=lambda done, total, told=told: told.append((done, total)),
        )
        assert told[-1] == (5, 5)
        assert [done for done, _ in told] == sorted(done for done, _ in told)


def by_texts(monkeypatch, rows, texts, metric):
    """Score as if the model had written `texts`."""
    monkeypatch.setattr(scoring, "generate", lambda *_: (list(texts), 0))
    return score(torch.nn.Module(), None, rows, metric=metric)


def test_generated_metrics(monkeypatch):
    result = by_texts(monkeypatch, ROWS, ["card  arrival", "no", "positive", "card", "card"], "auto")
    assert result == Scores("exact_match", 0.6, (1.0, 0.0, 1.0, 1.0, 0.0), result.others, result.predictions)
    assert result.others["macro_f1"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    sums = [row("1 + 1", "( 1 + 1 ) #### 2", answer="2"), row("2 + 2", "( 2 + 2 ) #### 4", answer="4")]
    result = by_texts(monkeypatch, sums, ["( 1 + 1 ) #### 2.0", "#### 5"], "auto")
    assert (result.metric, result.per_item, result.others) == ("final_answer", (1.0, 0.0), {"exact_match": 0.0})


def test_similarity_metrics_stand_beside_each_other(monkeypatch):
    pytest.importorskip("sacrebleu")
    rows = [row("d", "a b c d", references=("a b c d", "d c b a")), row("e", "one two three four", references=("one two three four",))]
    texts = ["a b c d", "one two three"]
    result = by_texts(monkeypatch, rows, texts, "auto")
    assert result.metric == "rougeL"
    assert result.value == pytest.approx((1 + 6 / 7) / 2)
    assert set(result.others) == {"rouge1", "rouge2", "bleu", "chrf"}
    bleu = by_texts(monkeypatch, rows, texts, "bleu")
    assert bleu.value == result.others["bleu"] == metrics.bleu(texts, [one.references for one in rows]).value
    assert len(bleu.per_item) == 2
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    assert set(by_texts(monkeypatch, rows, texts, "rougeL").others) == {"rouge1", "rouge2"}


@pytest.mark.parametrize(
    ("rows", "metric"),
    [
        (ROWS, "exact_match"),
        ([row(choices=("Here.", "x"), gold=0)], "accuracy"),
        ([row(completion="1 #### 1")], "final_answer"),
        ([row(references=("a", "b"))], "rougeL"),
        ([row(completion="a b c d e f g h i j")], "rougeL"),
        ([row(completion="a b c d e f g h i j", label="l")], "exact_match"),
        ([Row("1", (), "text")], "loss"),
    ],
)
def test_the_metric_follows_the_rows(rows, metric):
    assert choose_metric(rows) == metric


def test_what_cannot_be_scored_is_said(tiny_llama, tiny_tokenizer):
    with pytest.raises(DataError, match="no rows"):
        score(tiny_llama, tiny_tokenizer, [])
    with pytest.raises(DataError, match="no rows"):
        loss(tiny_llama, tiny_tokenizer, [])
    with pytest.raises(DataError, match="did you mean 'rougeL'"):
        score(tiny_llama, tiny_tokenizer, ROWS, metric="rogueL")
    with pytest.raises(DataError, match="known are auto"):
        score(tiny_llama, tiny_tokenizer, ROWS, metric="zzz")
    with pytest.raises(DataError, match="only loss can score it"):
        score(tiny_llama, tiny_tokenizer, [Row("1", (), "text", where="t:1")], metric="rougeL")


LEARNED = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}


@pytest.mark.parametrize("metric", ["accuracy", "loss", "exact_match"])
@pytest.mark.parametrize("virtual", [0, 8])
def test_nothing_passes_the_end_of_the_context(tiny_tokenizer, metric, virtual):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**LEARNED, vocab_size=len(tiny_tokenizer))).eval()  # one position more is an IndexError
    if virtual:
        graft.adapt(model, graft.Prompt(n=virtual, init_embeds="random"))
    rows = [row("a" * 90, "yes"), row("b", "no"), row("c", "yes"), row("d" * 20, "word " * 40 if metric != "accuracy" else "no")]
    result = score(model, tiny_tokenizer, rows, metric=metric, batch_size=2)
    assert len(result.per_item) == 4
    assert result.truncated == {"loss": 2, "accuracy": 1, "exact_match": 1 + bool(virtual)}[metric]
    short = score(model, tiny_tokenizer, rows[1:3], metric=metric, batch_size=2)
    assert short.truncated == 0
    if metric == "accuracy":
        assert result.per_item[1:3] == short.per_item


def test_one_long_completion_leaves_the_prompts_their_room(tiny_llama, tiny_tokenizer):
    rows = [row("x" * 100, "yes"), row("y", "z" * 900)]
    result = score(tiny_llama, tiny_tokenizer, rows, metric="exact_match")
    assert result.truncated == 0
    ids = prompt_ids(rows[0], tiny_tokenizer)
    assert result.predictions[0] == written(tiny_llama, tiny_tokenizer, ids, 512 - len(ids))
