"""The playground in a real browser, against a stand-in for the server whose pace and failures are prepared."""

import re

import pytest

from chromium import NEEDED, Browser
from graft.serve.playground import HEADERS, PAGES
from playground_stub import Stub

CARDS = ["It was ", "sent on ", "Monday ", "<b>&amp;", " comes soon."]
POLITE = ["I am sorry. ", "When did you ", "order it?"]
READY = "!document.getElementById('composer').hidden"
IDLE = "!document.getElementById('send').hidden"
TEXTS = "[...document.querySelectorAll('.turn:last-child .text')].map(each => each.textContent)"
STATS = "[...document.querySelectorAll('.turn:last-child .stats')].map(each => each.textContent)"
PAIR = "[...document.querySelectorAll('.turn:last-child .answer')].map(each => each.getBoundingClientRect()).map(r => [r.x, r.y])"

pytestmark = NEEDED


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    chromium.complaints.clear()
    return chromium


def ask(browser, message):
    browser.js("document.getElementById('message').focus()")
    browser.type(message)
    browser.press("Enter")


@pytest.mark.parametrize(("width", "dark", "paper"), [(1280, False, "rgb(247, 248, 246)"), (360, True, "rgb(18, 21, 19)")])
def test_both_answers_stream_and_the_conversation_continues(browser, width, dark, paper):
    with Stub({"cards": CARDS, "polite": POLITE}) as stub:
        browser.open(stub.url, width=width, dark=dark, ready=READY)
        browser.choose("#model-b", "polite")
        assert browser.js("document.getElementById('facts-b').textContent") == "prefix, 16 virtual tokens, 0.4 MB"
        stub.go.clear()
        ask(browser, "Where is <i>my</i> card?")
        browser.until("document.querySelectorAll('.answer[aria-busy]').length === 2 && !document.getElementById('stop-all').hidden")
        stub.go.set()
        browser.until(IDLE)
        assert browser.js(TEXTS) == ["".join(CARDS), "".join(POLITE)]  # as text: nothing in it is markup
        assert browser.js("document.querySelector('.asked').textContent") == "Where is <i>my</i> card?"
        assert re.fullmatch(r"5 tokens, \d+(\.\d)? tokens/s, first token after \d+ ms", browser.js(STATS)[0])
        assert browser.js("document.getElementById('status').textContent") == (f"A, cards: {''.join(CARDS)}. B, polite: {''.join(POLITE)}")
        ask(browser, "Thanks")
        browser.until(f"document.querySelectorAll('.turn').length === 2 && {IDLE}")
        sent = {body["model"]: body for path, body in stub.seen[2:] if path == "/v1/chat/completions"}
        for name, said in (("cards", CARDS), ("polite", POLITE)):
            assert [one["content"] for one in sent[name]["messages"]] == ["Where is <i>my</i> card?", "".join(said), "Thanks"]
            assert [one["role"] for one in sent[name]["messages"]] == ["user", "assistant", "user"]
        (ax, ay), (bx, by) = browser.js(PAIR)
        assert (ay == by and bx > ax) if width > 720 else (ax == bx and by > ay)
        assert browser.js("getComputedStyle(document.body).backgroundColor") == paper
        assert browser.js("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert browser.js("document.activeElement.id") == "message"
        assert browser.complaints == []


def test_stopping_ends_both_requests_and_keeps_what_came(browser):
    with Stub({"cards": CARDS * 400, "cold": POLITE * 400}, pause=0.005) as stub:
        browser.open(stub.url, ready=READY)
        ask(browser, "Go on")
        browser.until("[...document.querySelectorAll('.text')].every(each => each.textContent.length > 40)")
        browser.press("Escape")
        browser.until(IDLE)
        assert all(each.endswith("stopped") for each in browser.js(STATS))
        browser.until("true")
        for _ in range(200):
            if len(stub.left) == 2:
                break
            browser.js("new Promise(done => setTimeout(done, 10))")
        assert sorted(stub.left) == ["cards", "cold"]
        kept = browser.js(TEXTS)[0]
        stub.answers["cards"] = stub.answers["cold"] = POLITE
        ask(browser, "And?")
        browser.until(f"document.querySelectorAll('.turn').length === 2 && {IDLE}")
        assert next(body for _, body in stub.seen[2:] if body["model"] == "cards")["messages"][1]["content"] == kept
        assert browser.js("document.querySelector('.turn:last-child .note').textContent") == "Both answers are the same."
        browser.click("#fresh")
        assert browser.js("document.querySelectorAll('.turn').length") == 0
        assert browser.complaints == []


def test_an_error_is_the_servers_sentence_and_can_be_tried_again(browser):
    broken = [*CARDS[:2], RuntimeError("The adapter 'polite' was unloaded while it answered.")]
    with Stub({"cards": 422, "polite": broken}) as stub:
        browser.open(stub.url, ready=READY)
        browser.choose("#model-b", "polite")
        ask(browser, "Hello")
        browser.until(IDLE)
        first, second = browser.js("[...document.querySelectorAll('.answer .error')].map(each => each.textContent)")
        assert first == "The adapter 'cards' (lora) cannot be served: a tensor is not finite."
        assert second == "The adapter 'polite' was unloaded while it answered."
        assert browser.js(TEXTS)[1].startswith("It was sent on ")  # what came before it stays
        assert first in browser.js("document.getElementById('status').textContent")
        stub.answers |= {"cards": CARDS, "polite": POLITE}
        browser.click(".answer .again")
        browser.until(f"{IDLE} && document.querySelectorAll('.error').length")
        assert browser.js(TEXTS)[0] == "".join(CARDS)
        ask(browser, "Once more")
        browser.until(f"document.querySelectorAll('.turn').length === 2 && {IDLE}")
        histories = {body["model"]: len(body["messages"]) for _, body in stub.seen[-2:]}
        assert histories == {"cards": 3, "polite": 1}  # an answer that failed is no part of what follows
        assert all("422" in each for each in browser.complaints)


def test_a_key_is_asked_for_where_the_server_wants_one(browser):
    with Stub({"cards": CARDS, "cold": CARDS}, key="secret") as stub:
        browser.open(stub.url, ready="!document.getElementById('door').hidden")
        assert not browser.js(READY)
        assert browser.js("document.activeElement.id") == "key"
        browser.type("wrong")
        browser.press("Enter")
        browser.until("!document.getElementById('door-error').hidden")
        assert "Authorization" in browser.js("document.getElementById('door-error').textContent")
        browser.js("document.getElementById('key').value = ''")
        browser.type("secret")
        browser.press("Enter")
        browser.until(READY)
        ask(browser, "Hello")
        browser.until(IDLE)
        assert browser.js(TEXTS) == ["".join(CARDS)] * 2
        assert browser.js("document.getElementById('where').textContent") == "tiny, 3 adapters"
        browser.open(stub.url, ready=READY)  # the tab keeps it
        browser.js("sessionStorage.clear()")


def test_settings_go_with_the_request_as_they_stand(browser):
    with Stub({"cards": CARDS, "tiny": CARDS}) as stub:
        browser.open(stub.url, ready=READY)
        browser.choose("#model-b", "")
        values = {"temperature": "0.7", "top-p": "0.9", "top-k": "40", "max-tokens": "12", "seed": "5", "stop": "END"}
        values["system"] = "Be brief."
        for name, value in values.items():
            browser.choose(f"#{name}", value)
        said = browser.js("document.getElementById('summary').textContent")
        assert said == 'temperature 0.7, top-p 0.9, top-k 40, up to 12 tokens, seed 5, stop "END", system prompt'
        ask(browser, "Hello")
        browser.until(IDLE)
        (path, body), *rest = stub.seen
        assert not rest  # one model, one request
        assert path == "/v1/chat/completions"
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_tokens": 12, "seed": 5, "stop": ["END"], "stream": True}
        assert {name: body[name] for name in wanted} == wanted
        browser.choose("#form", "plain")
        ask(browser, "Hello")
        browser.until(f"document.querySelectorAll('.turn').length === 2 && {IDLE}")
        assert stub.seen[1][0] == "/v1/completions"
        assert stub.seen[1][1]["prompt"] == "Hello"
        browser.choose("#temperature", "9")
        ask(browser, "Hello")
        assert browser.js("document.activeElement.id") == "temperature"
        assert len(stub.seen) == 2


def test_everything_has_a_name_for_a_screen_reader(browser):
    with Stub({"cards": CARDS, "cold": CARDS}) as stub:
        browser.open(stub.url, ready=READY)
        ask(browser, "Hello")
        browser.until(IDLE)
        found = browser.names()
        named = {"button", "combobox", "textbox", "spinbutton", "link", "article", "heading"}
        assert not [each for each in found if each[0] in named and not each[1].strip()]
        assert {("combobox", "Model A"), ("combobox", "Model B"), ("textbox", "Message"), ("button", "Send")} <= set(found)
        assert {("button", "Ask cards again"), ("article", "A: cards"), ("heading", "Hello")} <= set(found)


def test_nothing_foreign_can_run_or_be_reached(browser):
    with Stub({}) as stub:
        browser.open(stub.url, ready=READY)
        browser.js("(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); })()")
        browser.js("(() => { document.body.insertAdjacentHTML('beforeend', '<p id=\"styled\" style=\"color: red\">x</p>'); })()")
        assert browser.js("window.ran") is None
        assert browser.js("getComputedStyle(document.getElementById('styled')).color") != "rgb(255, 0, 0)"
        assert browser.js("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"
        assert len([each for each in browser.complaints if "Content Security Policy" in each]) >= 3


def test_a_server_that_is_gone_is_said_in_a_sentence(browser):
    with Stub({"cards": CARDS, "cold": CARDS}) as stub:
        browser.open(stub.url, ready=READY)
    ask(browser, "Hello")
    browser.until(IDLE)
    assert browser.js(TEXTS) == ["The server does not answer. Is it still running?"] * 2


def test_the_page_loads_its_own_files_alone():
    page = PAGES["/"][1].decode()
    loaded = set(re.findall(r'(?:src|href)="([^"#]+)"', page)) - {"data:,"}
    modules = {f"playground/{name}" for _, body in PAGES.values() for name in re.findall(r'from "\./([a-z]+\.js)"', body.decode())}
    assert {f"/{each}" for each in loaded | modules} == set(PAGES) - {"/"}
    assert not re.search(r"\bstyle=|\bon[a-z]+=|<style|<script(?![^>]*\bsrc=)", page)
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
