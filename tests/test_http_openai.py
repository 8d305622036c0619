"""The server as OpenAI's own client sees it: every endpoint, and streams, give what the engine gives."""

import concurrent.futures
import threading
import time

import openai
import pytest

from graft import formats
from graft.serve import Sampling
from http_server import METHODS

CHAT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Where is my card?"}]
GREEDY = {"temperature": 0, "max_tokens": 12}
NAMES = [None, *METHODS]
TEXT = "Where is my card? "


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def own(served, prompt, adapter=None, **sampling):
    return served.engine.submit(prompt, adapter, Sampling(**{"max_tokens": 12, **sampling})).result(60)


@pytest.mark.parametrize("adapter", NAMES)
def test_a_chat_is_answered_as_the_engine_answers(client, served, adapter):
    right = own(served, CHAT, adapter)
    found = client.chat.completions.create(model=adapter or "base", messages=CHAT, **GREEDY)
    assert found.choices[0].message.content == right.text
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason == right.answers[0].reason
    assert found.model == (adapter or "base")
    virtual = right.usage.virtual
    assert found.usage.prompt_tokens == right.usage.prompt + virtual
    assert found.usage.completion_tokens == right.usage.completion
    assert found.usage.total_tokens == right.usage.total
    assert found.usage.prompt_tokens_details.virtual_tokens == virtual == {"soft": 3, "front": 5}.get(adapter, 0)


def test_models_say_something_of_their_own(served):
    assert len({own(served, CHAT, adapter, logprobs=0).answers[0].tokens[0].logprob for adapter in NAMES}) == len(NAMES)


@pytest.mark.parametrize("adapter", [None, "cards", "front"])
def test_a_streamed_chat_is_the_whole_one(client, served, adapter):
    right = own(served, CHAT, adapter, max_tokens=20)
    asked = {"model": adapter or "base", "messages": CHAT, "temperature": 0, "max_tokens": 20, "stream": True}
    chunks = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == right.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [right.answers[0].reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == right.usage.total
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 5


def test_usage_in_every_event(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.completions.create(model="base", prompt=TEXT, **GREEDY, stream=True, stream_options=options))
    spent = [chunk.usage.completion_tokens for chunk in chunks]
    assert spent == sorted(spent)
    assert spent[-1] > spent[0]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_are_those_of_their_seeds(client, served, stream):
    right = own(served, CHAT, "cards", temperature=0.9, top_p=0.8, top_k=50, seed=11, n=3)
    found = client.chat.completions.create(
        model="cards",
        messages=CHAT,
        temperature=0.9,
        top_p=0.8,
        seed=11,
        n=3,
        max_completion_tokens=12,
        extra_body={"top_k": 50},
        stream=stream,
    )
    if stream:
        texts = ["", "", ""]
        for chunk in found:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        texts = [choice.message.content for choice in found.choices]
    assert texts == [answer.text for answer in right.answers]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_text(client, served, stream):
    whole = own(served, TEXT, max_tokens=30).text
    stop = whole[6:9]
    found = client.completions.create(model="base", prompt=TEXT, temperature=0, max_tokens=30, stop=["never said", stop], stream=stream)
    chunks = list(found) if stream else [found]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_chat_tells_log_probabilities(client, served):
    right = own(served, CHAT, "eyes", logprobs=3).answers[0]
    found = client.chat.completions.create(model="eyes", messages=CHAT, **GREEDY, logprobs=True, top_logprobs=3)
    told = found.choices[0].logprobs.content
    assert [one.logprob for one in told] == pytest.approx([token.logprob for token in right.tokens])
    assert all(len(one.top_logprobs) == 3 for one in told)
    assert all(one.top_logprobs[0].logprob == one.logprob and one.top_logprobs[0].token == one.token for one in told)  # greedy
    assert all(one.bytes is None or bytes(one.bytes).decode() == one.token for one in told)
    streamed = list(client.chat.completions.create(model="eyes", messages=CHAT, **GREEDY, logprobs=True, top_logprobs=3, stream=True))
    again = [one for chunk in streamed if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert again == told


@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists"])
def test_prompts_in_every_form(client, served, form):
    texts = [TEXT, "the review is"]
    ids = [served.engine.tokenizer(text)["input_ids"] for text in texts]
    prompt = {"text": texts[0], "texts": texts, "ids": ids[0], "lists": ids}[form]
    right = [own(served, one, "doors", temperature=0.7, seed=3, n=2) for one in (ids if form in ("texts", "lists") else ids[:1])]
    found = client.completions.create(model="doors", prompt=prompt, temperature=0.7, seed=3, n=2, max_tokens=12)
    assert [choice.index for choice in found.choices] == list(range(2 * len(right)))
    assert [choice.text for choice in found.choices] == [answer.text for one in right for answer in one.answers]
    assert found.usage.completion_tokens == sum(one.usage.completion for one in right)
    assert found.usage.prompt_tokens == sum(one.usage.prompt for one in right)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("new", [0, 1, 5])
@pytest.mark.parametrize("adapter", [None, "cards", "soft"])
def test_texts_are_scored(client, served, adapter, new, stream):
    ids = [served.engine.tokenizer(text)["input_ids"] for text in (TEXT, "card arrival")]
    right = served.engine.score(ids, adapter, alternatives=2)
    asked = {"model": adapter or "base", "prompt": ids, "echo": True, "logprobs": 2, "max_tokens": new, "temperature": 0}
    found = client.completions.create(**asked, stream=stream)
    choices = [choice for chunk in found for choice in chunk.choices] if stream else found.choices
    for prompt, (text, score) in enumerate(zip((TEXT, "card arrival"), right, strict=True)):
        parts = [choice for choice in choices if choice.index == prompt]
        told = [value for part in parts for value in part.logprobs.token_logprobs]
        tops = [value for part in parts for value in part.logprobs.top_logprobs]
        tokens = [value for part in parts for value in part.logprobs.tokens]
        whole = "".join(part.text for part in parts)
        assert told[0] is None
        assert tops[0] is None
        assert told[1 : len(ids[prompt])] == pytest.approx(score.logprobs[1:])
        assert len(told) <= len(ids[prompt]) + new
        assert (len(told) > len(ids[prompt])) == (new > 0)
        for value, top in zip(told[1:], tops[1:], strict=True):
            assert value in top.values()
            assert 2 <= len(top) <= 3
        assert whole.startswith(text)
        assert "".join(tokens)[: len(text)] == text
        offsets = [value for part in parts for value in part.logprobs.text_offset]
        assert [offsets[k] + len(tokens[k]) for k in range(len(ids[prompt]) - 1)] == offsets[1 : len(ids[prompt])]
        assert offsets == sorted(offsets)
        assert all(offset >= len(text) for offset in offsets[len(ids[prompt]) :])


def test_an_echo_without_log_probabilities(client, served):
    found = client.completions.create(model="base", prompt=TEXT, echo=True, **GREEDY)
    assert found.choices[0].text == TEXT + own(served, TEXT).text
    assert found.choices[0].logprobs is None


def test_models_are_listed_with_method_parent_and_size(client, served, adapters_folder):
    client.completions.create(model="waist", prompt=TEXT, max_tokens=1)
    listed = {one.id: one for one in client.models.list()}
    assert set(listed) == {"base", *METHODS}
    assert listed["base"].parent is None
    waist = listed["waist"]
    assert (waist.parent, waist.methods, waist.loaded, waist.virtual_tokens, waist.chat) == ("base", "bottleneck", True, 0, True)
    assert waist.bytes == next(one.bytes for one in served.engine.adapters() if one.name == "waist") > 0
    assert client.models.retrieve("waist") == waist
    assert client.models.retrieve("base").max_model_len == 512


def test_a_method_is_told_before_an_adapter_is_read(adapters_folder):
    told = {"cards": "lora", "doors": "dora", "eyes": "ia3", "soft": "prompt", "front": "prefix", "waist": "bottleneck"}
    assert {name: formats.announced(adapters_folder / name) for name in METHODS} == told
    assert formats.announced(adapters_folder) == ""


def test_an_unknown_model_is_not_found(client):
    for ask in (
        lambda: client.chat.completions.create(model="nobody", messages=CHAT),
        lambda: client.completions.create(model="nobody", prompt=TEXT),
        lambda: client.models.retrieve("nobody"),
    ):
        with pytest.raises(openai.NotFoundError, match=r"'nobody'.*cards") as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_a_prompt_that_does_not_fit_is_refused(client):
    with pytest.raises(openai.BadRequestError, match=r"600 tokens.*512 positions"):
        client.completions.create(model="base", prompt=[5] * 600)


def test_as_many_tokens_as_fit_are_answered(client):
    found = client.completions.create(model="front", prompt=[5] * 490, max_tokens=400, temperature=0, extra_body={"ignore_eos": True})
    assert found.usage.total_tokens == 512
    assert found.choices[0].finish_reason == "length"


def test_many_at_once_are_answered_as_one_alone(client, served):
    asked = [(NAMES[number % len(NAMES)], f"{'the review is ' * (number % 3)}{TEXT}") for number in range(42)]
    right = {one: own(served, one[1], one[0]).text for one in set(asked)}

    def ask(one):
        found = client.completions.create(model=one[0] or "base", prompt=one[1], **GREEDY, stream=True)
        return "".join(chunk.choices[0].text for chunk in found)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, asked))
    assert found == [right[one] for one in asked]


def test_adapters_that_take_long_to_read_keep_no_other_waiting(client, served, monkeypatch):
    release, ready = threading.Event(), served.desk.ready

    def slow(adapter):
        if adapter == "cards":
            release.wait(20)
        ready(adapter)

    monkeypatch.setattr(served.desk, "ready", slow)
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(client.completions.create, model="cards", prompt=TEXT, max_tokens=1) for _ in range(40)]
        while served.desk.gate.requests < 40:
            time.sleep(0.01)
        assert client.completions.create(model="base", prompt=TEXT, max_tokens=1, timeout=10).usage.completion_tokens == 1
        release.set()
        assert all(one.result(30).usage.completion_tokens == 1 for one in waiting)


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_hangs_up_is_no_longer_answered(client, served, stream):
    def cancelled():
        return served.engine.counts().adapters["cards"].requests["cancelled"]

    before = cancelled()
    asked = {"model": "cards", "prompt": TEXT, "max_tokens": 480, "temperature": 0, "extra_body": {"ignore_eos": True}}
    if stream:
        with client.completions.create(**asked, stream=True) as chunks:
            next(iter(chunks))
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.15).completions.create(**asked)
    until = time.monotonic() + 10
    while cancelled() == before:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert served.desk.gate.requests == 0
