"""Chat in a terminal: its commands by lines, a server as what answers, an engine as what answers, and a real pseudo-terminal."""

import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from graft import cli
from graft.chat.backend import Answer, Model, Piece, read_all
from graft.chat.local import Local, chat_with_base
from graft.chat.remote import Remote
from graft.chat.session import Session
from graft.chat.terminal import completions
from graft.data import read
from graft.errors import ServeError
from graft.model.load import load
from graft.serve import Engine, Sampling
from playground_stub import Stub
from served import write_place


class Canned:
    """Answers each model with its name and the number of messages; what it was asked is in `asked`."""

    where = "here"

    def __init__(self, chat=True):
        self.asked, self.chat, self.broken = [], chat, False

    def models(self):
        return [
            Model("tiny", True, chat=self.chat),
            Model("cards", False, "lora", 0, 3_210_000, self.chat),
            Model("polite", False, chat=self.chat),
        ]

    def ask(self, model, prompt, sampling):
        self.asked.append((model, prompt, sampling))
        return CannedStream(f"{model} hears {len(prompt)}", self.broken)


class CannedStream:
    def __init__(self, text, broken):
        self.text, self.broken, self.reason = text, broken, ""

    def __iter__(self):
        for number, word in enumerate(self.text.split(" "), 1):
            yield Piece(("" if number == 1 else " ") + word, number)
        if self.broken:
            raise ServeError("the adapter 'cards' was unloaded while it answered")
        self.reason = "stop"

    def cancel(self):
        pass


def talk(*lines, backend=None, adapter=""):
    """A session that was given these lines, and what it printed."""
    console = Console(file=io.StringIO(), width=100)
    left = list(lines)

    def read(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    session = Session(backend or Canned(), console, read, adapter)
    session.run()
    return session, console.file.getvalue()


def roles(prompt):
    return [(one["role"], one["content"]) for one in prompt]


def test_an_adapter_is_switched_in_the_middle_and_the_conversation_stays():
    session, said = talk("one", "/adapter cards", "two", "/adapter tiny", "three")
    assert [model for model, _, _ in session.backend.asked] == ["tiny", "cards", "tiny"]
    assert roles(session.backend.asked[2][1]) == [
        ("user", "one"), ("assistant", "tiny hears 1"), ("user", "two"), ("assistant", "cards hears 3"), ("user", "three"),
    ]  # fmt: skip
    assert "tiny hears 5\n3 tokens" in said
    assert "here: tiny, 2 adapters." in said


def test_again_to_two_at_once_and_from_the_start():
    session, said = talk("one", "two", "/adapter polite", "/retry", "/both cards tiny", "/both tiny cards four  words", "/reset", "five")
    asked = [(model, len(prompt), prompt[-1]["content"]) for model, prompt, _ in session.backend.asked]
    assert asked == [
        ("tiny", 1, "one"), ("tiny", 3, "two"), ("polite", 3, "two"), ("cards", 3, "two"), ("tiny", 3, "two"),
        ("tiny", 5, "four  words"), ("cards", 5, "four  words"), ("polite", 1, "five"),
    ]  # fmt: skip
    assert session.talk.pairs == [("five", "polite hears 1")]
    both = next(line for line in said.splitlines() if "cards hears 3" in line)
    assert "tiny hears 3" in both  # side by side


def test_the_system_prompt_and_settings_go_with_what_is_asked():
    session, said = talk(
        "/system Be brief.", "/set temperature 0.7", "/set top-k 40", "/set stop \\n", "one", "/system none", "/set stop none", "two"
    )
    first, second = session.backend.asked
    assert roles(first[1])[0] == ("system", "Be brief.")
    assert first[2] == {"max_tokens": 256, "temperature": 0.7, "top_k": 40, "stop": ["\n"]}
    assert roles(second[1])[0] == ("user", "one")
    assert "stop" not in second[2]
    assert "temperature 0.7" in said


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/adaptor cards", "did you mean /adapter?"),
        ("/xyzzy", "/help lists them"),
        ("/adapter nobody", "there is no model 'nobody' at here: there are tiny, cards, polite"),
        ("/adapter", "/adapter NAME"),
        ("/set heat 3", "there are temperature"),
        ("/set temperature warm", "takes a number"),
        ("/both cards", "name two models"),
        ("/both cards tiny", "nothing was asked yet"),
        ("/retry", "nothing was asked yet"),
        ("/save", "name the file"),
        ("/save /dev/null/talk", "cannot be written"),
        ("/save \0", "cannot be written"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_the_chat_goes_on(line, sentence):
    session, said = talk(line, "one")
    assert sentence in " ".join(said.split())
    assert session.talk.pairs == [("one", "tiny hears 1")]


def test_an_answer_that_failed_is_no_part_of_what_follows():
    backend = Canned()
    backend.broken = True
    session, said = talk("one", "/both tiny cards two", backend=backend)
    assert "tiny hears 1\nthe adapter 'cards' was unloaded while it answered" in said
    assert session.talk.pairs == []


def test_a_retry_that_failed_leaves_the_answer_before_it():
    session, _ = talk("one")
    session.backend.broken = True
    session.take("/retry")
    assert session.talk.pairs == [("one", "tiny hears 1")]


def test_a_base_without_a_template_gets_each_message_by_itself():
    session, said = talk("one", "two", backend=Canned(chat=False))
    assert [prompt for _, prompt, _ in session.backend.asked] == ["one", "two"]
    assert "no chat template" in said


def test_what_is_saved_can_be_trained_on(tmp_path):
    file = tmp_path / "talk.jsonl"
    _, said = talk("/system Be brief.", "one", "/adapter cards", "two \\", "lines", f"/save {file}", f"/save {file}", "/quit", "never read")
    assert "is there already" in " ".join(said.split())
    (row,) = read(file).rows
    assert [(one.role, one.content) for one in row.messages] == [
        ("system", "Be brief."), ("user", "one"), ("assistant", "tiny hears 2"), ("user", "two \nlines"),
    ]  # fmt: skip
    assert row.completion == "cards hears 4"
    assert json.loads(file.read_text())["models"] == ["tiny", "cards"]


def test_all_models_are_listed_with_their_methods():
    _, said = talk("/adapters", "/help", adapter="cards")
    assert re.search(r"• +cards +lora +3\.2 MB", said)
    assert re.search(r"polite +not read yet", said)
    assert "/retry" in said


def test_tab_completes_commands_and_names():
    names = ["tiny", "cards"]
    assert completions("/ad", "/ad", names) == ["/adapter ", "/adapters "]
    assert completions("c", "/both tiny c", names) == ["cards "]
    assert completions("c", "tell c", names) == []


def test_what_a_model_writes_cannot_steer_the_terminal():
    backend = Canned()
    backend.ask = lambda *_: CannedStream("a\x1b[2J\x07b\x9bc\r\u202ed", False)
    _, said = talk("one", "/both tiny cards one", backend=backend)
    assert "a[2Jbcd" in said
    assert not set(said) & set("\x1b\x07\x9b\r\u202e")


# a server

POLITE = ["I am sorry. ", "When did you ", "order it?"]


def test_a_servers_answer_and_its_refusals():
    broken = ["It was ", RuntimeError("the adapter 'cold' was unloaded while it answered")]
    with Stub({"tiny": POLITE, "cards": 422, "cold": broken}) as stub:
        session, said = talk("one", "/adapter cards", "two", "/adapter cold", "three", "/both tiny cards four", backend=Remote(stub.url))
        assert session.talk.pairs == [("one", "".join(POLITE))]
        flat = " ".join(said.split())
        assert "I am sorry. When did you order it? 3 tokens" in flat
        assert "The adapter 'cards' (lora) cannot be served: a tensor is not finite." in flat
        assert "It was the adapter 'cold' was unloaded while it answered" in flat
        path, body = stub.seen[0]
        assert path == "/v1/chat/completions"
        assert body["stream"]
        assert body["max_tokens"] == 256


def test_a_servers_key():
    with Stub({"tiny": POLITE}, key="secret") as stub:
        with pytest.raises(ServeError, match="The API key is missing or wrong"):
            Remote(stub.url).models()
        assert [one.name for one in Remote(stub.url, "secret").models()] == ["tiny", "cards", "cold", "polite"]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:ninety"])
def test_what_is_no_url(url):
    with pytest.raises(ServeError, match="is no server's URL"):
        Remote(url)


def test_where_nothing_answers():
    with Stub({}) as stub:
        pass
    with pytest.raises(ServeError, match=r"no server answers at http://127.0.0.1:\d+ .*graft serve"):
        Remote(stub.url).models()


def test_leaving_an_answer_ends_its_request():
    with Stub({"tiny": POLITE * 1000, "cards": POLITE * 1000}, pause=0.002) as stub:
        server = Remote(stub.url)
        answers = [Answer("tiny"), Answer("cards")]
        reading = read_all(answers, [server.ask(one.model, "one", {}) for one in answers])
        while not all(one.text for one in answers):
            next(reading)
        reading.close()
        until = time.monotonic() + 5
        while len(stub.left) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert sorted(stub.left) == ["cards", "tiny"]


# a terminal


class Terminal:
    """`graft chat` in a pseudo-terminal."""

    def __init__(self, *arguments):
        self.end, theirs = pty.openpty()
        command = [sys.executable, "-m", "graft.cli", "chat", *arguments]
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait(10)
        os.close(self.end)

    def type(self, text):
        os.write(self.end, text.encode())

    def wait(self, pattern, seconds=20):
        """Read until what is shown from here on matches; it."""
        until = time.monotonic() + seconds
        while not re.search(pattern, self.seen, re.S):
            ready, _, _ = select.select([self.end], [], [], max(0, until - time.monotonic()))
            assert ready, f"never seen: {pattern!r} in {self.seen[-2000:]!r}"
            self.seen += os.read(self.end, 1 << 16).decode(errors="replace")
        seen, self.seen = self.seen, ""
        return seen


def test_ctrl_c_stops_the_answer_and_not_the_program():
    with (
        Stub({"tiny": [f"w{number} " for number in range(3000)], "cards": POLITE}, pause=0.01) as stub,
        Terminal("--url", stub.url) as terminal,
    ):
        terminal.wait("tiny> ")
        terminal.type("count\r")
        terminal.wait("w10 ")
        terminal.type("\x03")
        terminal.wait("stopped.*tiny> ")
        terminal.type("half a line")
        terminal.wait("half a line")  # a Ctrl-C that comes with the letters can be missed by readline until the next one
        time.sleep(0.1)
        terminal.type("\x03")
        terminal.wait("/quit leaves.*tiny> ")
        terminal.type("/adapter ca\t\r")
        terminal.wait("cards> ")
        terminal.type("and now\r")
        terminal.wait("order it.*tokens/s.*cards> ")
        terminal.type("\x1b[A\r")  # the line before, from the history
        terminal.wait("order it.*cards> ")
        terminal.type("\x04")
        assert terminal.process.wait(10) == 0
        contents = [one["content"] for one in stub.seen[-1][1]["messages"]]
        assert contents[0] == "count"
        assert contents[1].startswith("w0 w1 ")  # what came before the stop is kept
        assert contents[2:] == ["and now", "".join(POLITE), "and now"]
        assert "tiny" in stub.left


# an engine in this process


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama, tiny_tokenizer):
    return write_place(tmp_path_factory.mktemp("chat"), tiny_llama, tiny_tokenizer, ("lora", "prefix"))


def lines(monkeypatch, *given):
    left = list(given)

    def read(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr("graft.chat.terminal.read_line", read)


def test_a_base_in_this_process_answers_as_the_engine_does(place, tmp_path, monkeypatch):
    (place / "adapters" / "broken").mkdir(exist_ok=True)
    (place / "adapters" / "broken" / "adapter_config.json").write_text("{}")
    console = Console(file=io.StringIO(), width=120)
    lines(
        monkeypatch, "/set max_tokens 12", "Where is my card?", "/adapter lora", "Where is it?", "/adapter prefix", "And now?",
        "/adapter broken", "Hello?", "/both lora prefix", "/adapters", f"/save {tmp_path / 'talk.jsonl'}",
    )  # fmt: skip
    chat_with_base(str(place / "base"), place / "adapters", console)
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    said = console.file.getvalue()
    assert "the adapter 'broken' cannot be served" in " ".join(said.split())
    assert re.search(r"prefix +prefix +4 ", said)
    loaded = load(str(place / "base"))
    with Engine(loaded.model, loaded.tokenizer) as engine:
        for number, adapter in enumerate((None, "lora", "prefix")):
            if adapter:
                engine.load(adapter, place / "adapters" / adapter)
            asked = messages[: 2 * number + 1]
            result = engine.submit(asked, adapter, Sampling(max_tokens=12)).result(60)
            assert messages[2 * number + 1]["content"] == result.text
            assert result.text
    assert len({messages[at]["content"] for at in (1, 3, 5)}) == 3
    assert len(messages) == 6


def test_leaving_an_answer_of_the_engine_ends_it(place):
    loaded = load(str(place / "base"))
    with Engine(loaded.model, loaded.tokenizer) as engine:
        backend, answer = Local(engine, "base"), Answer("base")
        reading = read_all([answer], [backend.ask("base", "count", {"max_tokens": 400})])
        next(reading)
        reading.close()
        until = time.monotonic() + 10
        while not engine.floor.idle() and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.floor.idle()
        assert engine.counts().adapters[None].requests["cancelled"] == 1


def test_the_command_wants_a_server_or_a_base(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["graft", "chat", "--url", "http://127.0.0.1:9"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no server answers at http://127.0.0.1:9" in " ".join(capsys.readouterr().err.split())


def test_an_adapter_may_bring_the_template_that_its_base_has_not(tmp_path, tiny_llama, plain_tokenizer, monkeypatch):
    folder = write_place(tmp_path, tiny_llama, plain_tokenizer, ("lora", "prefix"))
    (folder / "adapters" / "lora" / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    lines(monkeypatch, "/set max_tokens 4", "one", "/adapter lora", "two", f"/save {tmp_path / 'talk.jsonl'}")
    console = Console(file=io.StringIO(), width=120)
    chat_with_base(str(folder / "base"), folder / "adapters", console)
    assert "no chat template" in console.file.getvalue()
    loaded = load(str(folder / "base"))
    answers = [one["content"] for one in json.loads((tmp_path / "talk.jsonl").read_text())["messages"] if one["role"] == "assistant"]
    with Engine(loaded.model, loaded.tokenizer) as engine:
        engine.load("lora", folder / "adapters" / "lora")
        assert engine.submit("one", None, Sampling(max_tokens=4)).result(60).text == answers[0]
        assert engine.submit(f"[one][{answers[0]}][two]", "lora", Sampling(max_tokens=4)).result(60).text == answers[1]
