"""Sampling and scoring of our own: draws that depend on nothing beside them, cuts, log-probabilities, stop texts, several answers."""

import copy
import time

import pytest
import torch

from graft.errors import ServeError
from graft.serve import Engine, Room, Sampling
from graft.serve import sampling as draws
from test_serve import GREEDY, SMALL, alone, base, called, loaded, prompt, shaken


def logits_of(setting, ids):
    """[T, vocabulary] of the adapter alone, in a forward without a cache."""
    model = base() if setting is None else shaken(setting).model
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()


def drawn(logits, options, seed=0, position=7):
    rows = torch.zeros(draws.ROWS, len(logits), dtype=torch.int32)
    asked = [(one, seed + number, position) for number, one in enumerate(options)]
    needs = draws.fill(asked, rows)
    return draws.choose(logits, rows, needs)[0].tolist()


def test_draws_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0]).expand(20_000, -1)
    for temperature in (0.5, 1.0, 2.0):
        counts = torch.bincount(torch.tensor(drawn(logits, [Sampling(temperature=temperature)] * len(logits))), minlength=5)
        wanted = (logits[0] / temperature).softmax(0) * len(logits)
        chi = ((counts - wanted) ** 2 / wanted.clamp_min(1e-9))[wanted > 5].sum()
        assert chi < 20, (temperature, counts, wanted)


def test_draws_of_one_seed_at_many_positions_follow_them_too():
    logits = torch.tensor([1.0, 0.0, -1.0]).expand(9_000, -1)
    rows = torch.zeros(draws.ROWS, len(logits), dtype=torch.int32)
    needs = draws.fill([(Sampling(temperature=1.0), 5, position) for position in range(len(logits))], rows)
    counts = torch.bincount(draws.choose(logits, rows, needs)[0].long(), minlength=3)
    wanted = logits[0].softmax(0) * len(logits)
    assert ((counts - wanted) ** 2 / wanted).sum() < 20


def test_cuts_keep_what_they_say():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().expand(4000, -1)
    for option, kept in (
        (Sampling(temperature=1, top_k=1), {1}),
        (Sampling(temperature=1, top_k=2), {1, 3}),
        (Sampling(temperature=1, top_p=0.39), {1}),
        (Sampling(temperature=1, top_p=0.5), {1, 3}),
        (Sampling(temperature=1, top_p=0.75), {1, 3, 2}),
        (Sampling(temperature=1, top_k=3, top_p=0.7), {1, 3}),  # of what top_k leaves, 4/9 and 3/9 reach it
        (Sampling(temperature=1, top_p=0.999), {0, 1, 2, 3}),
    ):
        assert set(drawn(logits, [option] * len(logits))) == kept, option


def test_each_row_has_its_own_options():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    options = [
        Sampling(),
        Sampling(temperature=5.0),
        Sampling(temperature=1, top_k=1),
        Sampling(temperature=0.01),
        Sampling(top_k=3),
        Sampling(),
    ]
    found = drawn(logits, options)
    best = logits.argmax(-1).tolist()
    assert [found[k] == best[k] for k in (0, 2, 3, 4, 5)] == [True] * 5


def test_a_seeded_answer_is_the_same_alone_and_in_any_company():
    hot = Sampling(max_tokens=12, temperature=1.5, seed=2**62 + 11)
    with loaded("lora", "prefix") as engine:
        first = engine.submit(prompt(9), "lora", hot).result(60).ids
        assert first == engine.submit(prompt(9), "lora", hot).result(60).ids  # its pages from the cache
    with loaded("ia3", "lora", "prompt", room=Room(cached=1024, batch=5, requests=5, page=8)) as engine:
        others = [engine.submit(prompt(7, k), ("ia3", "prompt", None)[k % 3], Sampling(max_tokens=20, temperature=1.0)) for k in range(6)]
        assert engine.submit(prompt(9), "lora", hot).result(60).ids == first
        assert engine.submit(prompt(9), "lora", Sampling(max_tokens=12, temperature=1.5, seed=12)).result(60).ids != first
        for other in others:
            other.result(60)


def test_greedy_rows_are_greedy_beside_drawn_ones():
    with loaded("lora", "prefix") as engine:
        hot = [engine.submit(prompt(5, k), "prefix", Sampling(max_tokens=15, temperature=2.0, top_p=0.9)) for k in range(4)]
        assert engine.submit(prompt(9), "lora", GREEDY).result(60).ids == alone("lora", prompt(9))
        for handle in hot:
            assert all(number < 64 for number in handle.result(60).ids)


def test_virtual_ids_are_never_drawn():
    with loaded("prompt") as engine:
        many = [engine.submit(prompt(4, k), "prompt", Sampling(max_tokens=40, temperature=50.0)) for k in range(8)]
        assert {number for handle in many for number in handle.result(60).ids} <= set(range(64))


def test_several_answers_have_seeds_of_their_own():
    options = Sampling(max_tokens=10, temperature=1.5, seed=4, n=3)
    with loaded("lora") as engine:
        result = engine.submit(prompt(9), "lora", options).result(60)
        assert len({tuple(answer.ids) for answer in result.answers}) == 3
        assert result.usage.completion == 30
        again = [Sampling(max_tokens=10, temperature=1.5, seed=4 + k) for k in range(3)]
        assert [answer.ids for answer in result.answers] == [engine.submit(prompt(9), "lora", one).result(60).ids for one in again]


@pytest.mark.parametrize("setting", [None, "lora", "prefix", "prefix_unshifted", "prompt"])
def test_logprobs_are_the_models_own(setting):
    ids = prompt(9)
    with loaded(*[one for one in [setting] if one]) as engine:
        other = engine.submit(ids, setting, Sampling(max_tokens=4))
        for option in (
            Sampling(max_tokens=6, logprobs=3),
            Sampling(max_tokens=6, logprobs=0),
            Sampling(max_tokens=6, temperature=2.0, logprobs=3),
        ):
            tokens = engine.submit(ids, setting, option).result(60).answers[0].tokens
            logs = logits_of(setting, [*ids, *[token.id for token in tokens]]).log_softmax(-1)[len(ids) - 1 : -1]
            for token, row in zip(tokens, logs, strict=True):
                assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
                best = row.topk(option.logprobs)
                assert [number for number, _ in token.alternatives] == best.indices.tolist()
                assert [value for _, value in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert all(token.logprob is None for token in other.result(60).answers[0].tokens)


def test_texts_are_scored_as_a_forward_scores_them():
    settings = (None, "lora", "dora", "prefix", "prefix_unshifted", "prompt", "prompt+lora", "bias_targets", "houlsby")
    texts = [prompt(length, length) for length in (1, 9, 30, 5)]
    with loaded(*settings[1:], slots=2) as engine:
        running = engine.submit(prompt(5), "lora", Sampling(max_tokens=60))
        for one in settings:
            for text, found in zip(texts, engine.score(texts, called(one), alternatives=2), strict=True):
                logs = logits_of(one, text).log_softmax(-1)
                assert found.ids == text
                assert found.logprobs[0] is None
                assert list(found.logprobs[1:]) == pytest.approx([float(logs[k, text[k + 1]]) for k in range(len(text) - 1)], abs=1e-4)
                assert [[number for number, _ in own] for own in found.alternatives[1:]] == logs[:-1].topk(2).indices.tolist()
        assert running.result(60).ids == alone("lora", prompt(5), 60)
        assert engine.submit(prompt(9), "prompt", GREEDY).result(60).ids == alone("prompt", prompt(9))


@pytest.mark.parametrize("before", [None, "lora", "prefix"])
def test_a_score_does_not_depend_on_the_batch_before_it(before):
    """A batch of the bare base runs through no slot: the forward that scores after it runs through its own all the same."""
    with loaded("lora", "prefix", "prefix+lora") as engine:
        for one in ("lora", "prefix+lora", None, "prefix"):
            engine.submit(prompt(5), before, GREEDY).result(60)
            (found,) = engine.score([prompt(9)], called(one))
            logs = logits_of(one, prompt(9)).log_softmax(-1)
            assert list(found.logprobs[1:]) == pytest.approx([float(logs[k, prompt(9)[k + 1]]) for k in range(8)], abs=1e-4), one


def test_text_streams_and_stops(tiny_llama, tiny_tokenizer):
    model = copy.deepcopy(tiny_llama)
    with Engine(model, tiny_tokenizer, room=SMALL) as engine:
        asked = [{"role": "user", "content": "Where is my card?"}]
        free = Sampling(max_tokens=40, ignore_end=True)
        whole = engine.submit(asked, sampling=free).result(60)
        ids = tiny_tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert whole.usage.prompt == len(ids)
        assert engine.submit(ids, sampling=free).result(60).ids == whole.ids
        assert whole.text == tiny_tokenizer.decode(whole.ids, skip_special_tokens=True)
        assert "".join(token.text for token in engine.submit(asked, sampling=free)) in (whole.text, whole.text.rstrip("�"))
        stop = whole.text[8:10]
        handle = engine.submit(asked, sampling=Sampling(max_tokens=400, ignore_end=True, stop=(stop, "never in there")))
        cut = handle.result(60)
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.answers[0].reason == "stop"
        assert len(cut.ids) < 40
        engine.floor.run(lambda: None)
        assert engine.floor.idle()


def test_an_answer_ends_at_the_end_of_sequence():
    model = base()
    ids = prompt(9)
    end = alone(None, ids)[3]
    first = alone(None, ids).index(end)
    model.generation_config.eos_token_id = [1, end]
    with Engine(model, room=SMALL) as engine:
        result = engine.submit(ids, sampling=GREEDY).result(60)
        assert result.ids == alone(None, ids)[: first + 1]
        assert result.answers[0].reason == "stop"
        other = engine.submit(ids, sampling=Sampling(max_tokens=10, ignore_end=True)).result(60)
        assert other.ids == alone(None, ids)
        assert other.answers[0].reason == "length"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"n": 0},
        {"max_tokens": 0},
        {"logprobs": 21},
        {"seed": -1},
        {"stop": ("",)},
    ],
)
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(ServeError, match=next(iter(options))):
        Sampling(**options)


def test_one_adapter_is_scored_while_it_has_no_slot():
    with loaded("lora", "ia3", slots=1) as engine:
        running = engine.submit(prompt(5), "lora", Sampling(max_tokens=100))
        next(iter(running))
        found = engine.score([prompt(6)], "ia3")[0]
        assert found.logprobs[1] == pytest.approx(float(logits_of("ia3", prompt(6)).log_softmax(-1)[0, prompt(6)[1]]), abs=1e-4)
        assert running.result(60).ids == alone("lora", prompt(5), 100)


def test_texts_beyond_one_forward_are_scored_without_waiting():
    """Where nothing is generated the engine sleeps until it is woken; here it would sleep for seconds between two forwards."""
    with loaded("lora", room=Room(cached=1024, batch=20, requests=8, page=4)) as engine:
        manager = engine.batching.manager
        event = getattr(manager, engine.batching.names.wake)
        wait = event.wait
        event.wait = lambda timeout: wait(2)
        began = time.monotonic()
        found = engine.score([prompt(15, seed) for seed in range(6)], "lora")
        assert [one.ids for one in found] == [prompt(15, seed) for seed in range(6)]
        assert time.monotonic() - began < 5  # one sleep may have begun before
