"""The playground and the chat against the real server on a tiny model: what they show is what the API returns."""

import io
import json

import httpx
from rich.console import Console

from chromium import NEEDED, Browser
from graft.chat.remote import Remote
from graft.chat.session import Session
from graft.serve.playground import HEADERS, PAGES
from http_server import KEY, running

READY = "!document.getElementById('composer').hidden"
IDLE = "!document.getElementById('send').hidden"
TEXTS = "[...document.querySelectorAll('.turn:last-child .text')].map(each => each.textContent)"
SETTINGS = {"temperature": 0.8, "seed": 11, "max_tokens": 24}


def whole(served, model, messages, **settings):
    """What the API answers to a whole request."""
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 256} | settings
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@NEEDED
def test_both_answers_are_what_the_api_returns(served, tmp_path):
    names = ("cards", "front")
    with Browser(tmp_path) as browser:
        browser.open(f"{served.url}/", ready=READY)
        for side, name in zip("ab", names, strict=True):
            browser.choose(f"#model-{side}", name)
        for field, value in SETTINGS.items():
            browser.choose(f"#{field.replace('_', '-')}", str(value))
        histories = {name: [] for name in names}
        for number, message in enumerate(("Where is my card?", "And when does it come?"), 1):
            browser.js("document.getElementById('message').focus()")
            browser.type(message)
            browser.press("Enter")
            browser.until(f"document.querySelectorAll('.turn').length === {number} && {IDLE}", 60)
            shown = dict(zip(names, browser.js(TEXTS), strict=True))
            for name in names:
                histories[name].append(user(message))
                assert shown[name] == whole(served, name, histories[name], **SETTINGS)
                histories[name].append(assistant(shown[name]))
            assert shown["cards"] != shown["front"]
        assert browser.js("document.getElementById('facts-b').textContent").startswith("prefix, 5 virtual tokens, ")
        assert browser.complaints == []


@NEEDED
def test_a_refusal_of_the_server_is_shown_as_it_says_it(served, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(f"{served.url}/", ready=READY)
        browser.choose("#model-b", "")
        message = "card " * 2000
        browser.js(f"document.getElementById('message').value = {json.dumps(message)}")
        browser.js("document.getElementById('message').focus()")
        browser.press("Enter")
        browser.until(f"document.querySelectorAll('.turn').length === 1 && {IDLE}", 60)
        body = {"model": browser.js("document.getElementById('model-a').value"), "messages": [user(message)], "max_tokens": 256}
        said = httpx.post(f"{served.url}/v1/chat/completions", json=body).json()["error"]["message"]
        assert browser.js("document.querySelector('.answer .error').textContent") == said


def test_every_file_of_the_page_comes_with_its_headers_and_without_a_key(served):
    for path, (kind, body) in PAGES.items():
        reply = httpx.get(served.url + path)
        assert (reply.status_code, reply.headers["content-type"], reply.content) == (200, kind, body)
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS


def test_a_chat_with_the_server_is_what_the_api_returns(served):
    lines = ["/set max_tokens 20", "Where is my card?", "/adapter eyes", "And now?", "/adapter nobody", "/set temperature 9", "Hello?"]
    console = Console(file=io.StringIO(), width=300)

    def read(prompt):
        if not lines:
            raise EOFError
        return lines.pop(0)

    session = Session(Remote(served.url), console, read, "soft")
    session.run()
    first, second = session.talk.pairs
    assert session.talk.models == ["soft", "eyes"]
    assert first == ("Where is my card?", whole(served, "soft", [user(first[0])], max_tokens=20))
    history = [user(first[0]), assistant(first[1]), user("And now?")]
    assert second == ("And now?", whole(served, "eyes", history, max_tokens=20))
    assert "temperature" in console.file.getvalue().splitlines()[-1]  # the server's refusal of 9
    assert {one.name: one.methods for one in session.models}["eyes"] == "ia3"


def test_a_caller_who_leaves_leaves_no_answer_running(served):
    before = served.engine.counts().adapters[None].requests["cancelled"]
    pieces = Remote(served.url).ask("base", [user("count")], {"max_tokens": 400, "temperature": 0})
    next(iter(pieces))
    pieces.cancel()
    for _ in range(500):
        if served.engine.floor.idle():
            break
        httpx.get(f"{served.url}/health")
    assert served.engine.floor.idle()
    assert served.engine.counts().adapters[None].requests["cancelled"] == before + 1


@NEEDED
def test_the_page_asks_for_the_key_of_a_server_that_has_one(served, tmp_path):
    with running(served.engine, api_key=KEY) as locked, Browser(tmp_path) as browser:
        browser.open(f"{locked.url}/", ready="!document.getElementById('door').hidden")
        browser.type(KEY)
        browser.press("Enter")
        browser.until(READY)
        browser.choose("#max-tokens", "5")
        browser.js("document.getElementById('message').focus()")
        browser.type("Hello")
        browser.press("Enter")
        browser.until(f"document.querySelectorAll('.turn').length === 1 && {IDLE}", 60)
        assert all(browser.js(TEXTS))
        assert browser.js("document.querySelectorAll('.answer .error').length") == 0
    with running(served.engine, api_key=KEY) as locked:
        assert next(one.name for one in Remote(locked.url, KEY).models()) == "base"
