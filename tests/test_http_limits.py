"""Requests that are too much, too slow, or nothing at all: each refused in OpenAI's shape, while the server goes on."""

import contextlib
import io
import json
import logging
import socket
import threading
import time

import httpx
import pytest

from graft.errors import ServeError
from graft.serve.fair import Queueing
from graft.serve.http import chat, completions, logs
from graft.serve.http.settings import Limits
from http_server import engine_for, running

SECRET = "the-secret-of-the-prompt"
LONG = {"model": "base", "prompt": "Where", "max_tokens": 450, "temperature": 0, "ignore_eos": True}
LIMITS = Limits(body_bytes=20_000, body_seconds=0.5, head_seconds=1.0, requests=3, answers=6, new_tokens=450, seconds=30)


@pytest.fixture(scope="module")
def strict(tiny_llama, tiny_tokenizer):
    """A server with narrow limits."""
    engine = engine_for(tiny_llama, tiny_tokenizer, queueing=Queueing(waiting=4))
    with engine, running(engine, limits=LIMITS) as found:
        yield found


@pytest.fixture(autouse=True)
def goes_on(strict):
    """Whatever was tried, the server answers afterwards, and nothing is left under way."""
    yield
    until = time.monotonic() + 10
    while strict.desk.gate.requests or not strict.engine.floor.idle():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert strict.desk.gate.answers == 0
    response = strict.post("/v1/completions", {"model": "base", "prompt": "Where", "max_tokens": 1})
    assert response.status_code == 200, response.text


def refused(response, status, said=""):
    assert response.status_code == status, response.text
    problem = response.json()["error"]
    assert said in problem["message"]
    assert "\n" not in problem["message"]
    assert "Traceback" not in response.text
    return problem


def raw(server, data, more=()):
    """The status that bytes on a connection get, sent in parts a while apart; b"" where it is closed without one."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        for pause, part in more:
            time.sleep(pause)
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(part)
        found = connection.recv(4096)
        return found.split()[1] if found else b""


def head(length=None, chunked=False):
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {length}"] if length is not None else []
    lines += ["Transfer-Encoding: chunked"] if chunked else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_body_that_is_too_large_is_not_read(strict):
    refused(strict.post("/v1/completions", {"model": "base", "prompt": "x" * 20_000}), 413, "20000 bytes")
    assert raw(strict, head(10**15)) == b"413"  # said at once, before a byte of it has come
    refused(strict.post("/v1/completions", {"model": "base", "prompt": "x" * (8 << 20)}), 413)  # and heard by who sends it all first
    assert raw(strict, head(30_000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")) == b"413"
    refused(httpx.post(f"{strict.url}/v1/completions", content=iter([b"x" * 8000] * 4), headers={"Content-Type": "application/json"}), 413)


def test_a_body_that_does_not_come_is_not_waited_for(strict):
    before = time.monotonic()
    assert raw(strict, head(100) + b'{"model"') == b"408"
    assert raw(strict, head(chunked=True) + b"2\r\n{}\r\n") == b"408"
    assert raw(strict, head(10), [(0.2, b"x")] * 4) == b"408"  # a byte now and then does not help
    assert time.monotonic() - before < 6


def test_who_hangs_up_in_the_middle_of_a_body_is_forgotten(strict):
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        connection.sendall(head(100) + b"{")


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50, b"A" * 100_000, b"GET /\x00 HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_http_is_dropped(strict, data):
    with socket.create_connection(("127.0.0.1", strict.port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            connection.recv(1000)


def test_a_request_in_two_lengths_is_none(strict):
    """What a proxy and a server could read as two different requests."""
    both = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(strict, both) in (b"400", b"415")
    two = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"
    assert raw(strict, two) == b"400"
    for length in (b"-1", b"5, 6", b"0x10", b"1e3", b"99999999999999999999999"):
        sent = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n"
        assert raw(strict, sent) in (b"400", b"413")


BODIES = [
    b"", b"null", b"[]", b"{", b'"x"', b"NaN", b"1" * 5000, b"[" * 9000, b'{"a":' * 3000, b"\xff\xfe", b"\x00" * 50,
    b'{"model": "base", "prompt": NaN}', b'{"model": "base", "prompt": "x", "temperature": NaN}',
    b'{"model": "base", "prompt": "x", "temperature": 1e999}', b'{"model": "base", "prompt": "x", "seed": 1' + b"0" * 4500 + b"}",
    b'{"model": "base", "prompt": "\\ud800"}', b'{"model": "\\udfff", "prompt": "x"}', b'{"model": "base", "prompt": "x", "\\ud800": 1}',
    b'{"model": "base", "prompt": "x", "stop": "\\ud800"}', b'{"model": "base", "prompt": [1e400]}',
    b'{"model": "base", "prompt": "x", "__class__": 1}', b'{"model": "base", "prompt": [true]}',
    b'{"model": "base", "prompt": {"a": 1}}', b'{"model": ["base"], "prompt": "x"}',
    b'{"model": "base", "prompt": "x", "max_tokens": "5"}', b'{"model": "base", "prompt": "x", "n": 1.5}',
    b'{"model": "base", "prompt": "x", "n": -1}', b'{"model": "base", "prompt": "x", "top_p": -0.1}',
    b'{"model": "base", "prompt": "x", "logprobs": 21}', b'{"model": "base", "prompt": []}', b'{"model": "base", "prompt": [[]]}',
    b'{"model": "base", "prompt": [[1], 2]}', b'{"model": "base", "prompt": [-1]}', b'{"model": "base", "prompt": [320]}',
    b'{"model": "base", "prompt": [99999999999]}', b'{"model": "base", "prompt": ["a", 1]}', b'{"prompt": "x"}',
    b'{"model": "base", "prompt": ""}', b'{"model": "base", "prompt": "x", "stop": ""}',
    b'{"model": "base", "prompt": "x", "tools": []}', b'{"model": "base", "prompt": "x", "presence_penalty": 0.5}',
    b'{"model": "base", "prompt": "x", "stream_options": {"x": 1}}',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_means_nothing_is_refused(strict, path, body):
    refused(httpx.post(strict.url + path, content=body, headers={"Content-Type": "application/json"}), 400)


def test_a_refusal_names_the_field(strict):
    problem = refused(
        strict.post("/v1/completions", {"model": "base", "prompt": "x", "best_of": 3}), 400, "best_of: there is no such field"
    )
    assert problem["param"] == "best_of"
    problem = refused(strict.post("/v1/chat/completions", {"model": "base", "messages": [{"role": "tool", "content": "x"}]}), 400)
    assert problem["param"] == "messages"


def test_as_many_requests_and_no_more_are_under_way(strict):
    """Three are let in; the fourth is told to come again, and those that run are not disturbed."""
    ended = []

    def ask():
        ended.append(strict.post("/v1/completions", LONG).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while strict.desk.gate.requests < 3:
        time.sleep(0.005)
    response = strict.post("/v1/completions", LONG)
    problem = refused(response, 429, "at most 3 requests and 6 answers")
    assert problem["type"] == "rate_limit_error"
    assert response.headers["retry-after"] == "1"
    assert strict.get("/health").status_code == strict.get("/v1/models").status_code == 200
    for thread in threads:
        thread.join()
    assert ended == [200, 200, 200]


def test_as_many_answers_and_no_more(strict):
    refused(strict.post("/v1/completions", LONG | {"prompt": ["a", "b"], "n": 4}), 429, "this one asks for 8")


def test_the_engines_own_queue_is_bounded_too(strict):
    """Six answers are let in, but four may wait, and none can start while the engine is held."""
    release = threading.Event()
    held = threading.Thread(target=strict.engine.floor.run, args=(lambda: release.wait(20),))
    held.start()
    try:
        refused(strict.post("/v1/completions", LONG | {"prompt": ["a", "b", "c", "d", "e"], "n": 1}), 429)
    finally:
        release.set()
        held.join()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended(strict, stream, monkeypatch):
    monkeypatch.setattr(strict.desk, "settings", type(strict.desk.settings)("base", limits=Limits(seconds=0.2)))
    release = threading.Event()
    held = threading.Thread(target=strict.engine.floor.run, args=(lambda: release.wait(20),))
    held.start()
    threading.Timer(1.0, release.set).start()
    before = time.monotonic()
    response = strict.post("/v1/completions", LONG | {"stream": stream})
    assert time.monotonic() - before < 5
    if stream:
        lines = [line for line in response.text.splitlines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert lines[-1] == "data: [DONE]"
    else:
        assert refused(response, 408)["code"] == "timeout"
    held.join()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_answer_that_is_long_to_write_holds_nobody_up(strict, path, monkeypatch):
    begun, written = threading.Event(), threading.Event()
    kind = completions.Completion if path == "/v1/completions" else chat.Chat
    whole = kind.completion

    def slow(self, asking):
        begun.set()
        assert written.wait(10)
        return whole(self, asking)

    monkeypatch.setattr(kind, "completion", slow)
    said = {"prompt": "Where"} if kind is completions.Completion else {"messages": [{"role": "user", "content": "Where"}]}
    found = []
    caller = threading.Thread(target=lambda: found.append(strict.post(path, {"model": "base", "max_tokens": 1, **said})))
    caller.start()
    assert begun.wait(10)
    assert strict.get("/health", timeout=5).status_code == 200
    written.set()
    caller.join(10)
    assert found[0].status_code == 200


def test_a_caller_that_does_not_read_keeps_nobody_waiting(strict):
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        body = json.dumps(LONG | {"stream": True, "logprobs": 20}).encode()
        connection.sendall(head(len(body)) + body)
        time.sleep(0.1)
        for _ in range(3):
            assert strict.post("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_is_an_error_and_no_end(strict, stream, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of the test, with " + SECRET)

    said = io.StringIO()
    with logged_to(said):
        monkeypatch.setattr(strict.desk.prompts, "ids", broken)
        problem = refused(strict.post("/v1/completions", LONG | {"stream": stream}), 500, "is in the log under")
    assert SECRET not in problem["message"]
    (line,) = [json.loads(line) for line in said.getvalue().splitlines() if "traceback" in line]
    assert "ZeroDivisionError" in line["traceback"]
    assert line["id"] in problem["message"]


def test_a_refusal_of_the_engines_is_one_wherever_it_is_raised(strict, monkeypatch):
    def refusing(_):
        raise ServeError("of the test")

    monkeypatch.setattr(strict.desk, "adapter", refusing)
    refused(strict.post("/v1/completions", {"model": "base", "prompt": "x"}), 400, "of the test")


def test_a_dead_engine_is_said(tiny_llama, tiny_tokenizer):
    with engine_for(tiny_llama, tiny_tokenizer) as engine, running(engine) as server:
        assert server.get("/ready").status_code == 200
        engine.stop(now=True)
        refused(server.get("/ready"), 503)
        assert server.get("/health").status_code == 200
        response = server.post("/v1/completions", {"model": "base", "prompt": "x"})
        refused(response, 503)


@contextlib.contextmanager
def logged_to(stream, lines=0):
    """What is logged goes to a stream, as the command does it, until it has so many lines: they are written behind the answer."""
    time.sleep(0.05)  # for the line of the request before
    kept = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in logs.OWN}
    logs.to(stream)
    try:
        yield
        until = time.monotonic() + 5
        while stream.getvalue().count("\n") < lines and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        for name, (handlers, propagate) in kept.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate
            logging.getLogger(name).setLevel(logging.NOTSET)


def test_what_is_asked_and_answered_is_in_no_log(strict):
    said = io.StringIO()
    with logged_to(said, lines=6):
        answer = strict.post("/v1/completions", {"model": "base", "prompt": SECRET, "max_tokens": 8, "temperature": 0}).json()
        strict.post("/v1/completions", {"model": "base", "prompt": SECRET, "n": SECRET})
        strict.post("/v1/completions", {"model": SECRET, "prompt": SECRET})
        strict.post("/v1/chat/completions", {"model": "base", "messages": [{"role": SECRET, "content": SECRET}]})
        strict.post("/v1/completions", {"model": "base", "prompt": [SECRET] * 5, "n": 16})
        httpx.get(f"{strict.url}/v1/models?prompt={SECRET}", headers={"Authorization": f"Bearer {SECRET}", "User-Agent": SECRET})
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [line["status"] for line in lines] == [200, 400, 404, 400, 429, 200]
    assert {"time", "level", "logger", "message", "id", "method", "path", "status", "seconds"} <= set(lines[0])
    told = {"model": "base", **{name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")}}
    assert told.items() <= lines[0].items()
    assert SECRET not in said.getvalue()
    assert answer["choices"][0]["text"] not in said.getvalue()


def test_a_line_of_the_log_is_one_line(strict):
    said = io.StringIO()
    with logged_to(said, lines=1):
        strict.get("/v1/models/a%0a%7B%22level%22:%22error%22%7D%1b[2J")
    (line,) = said.getvalue().splitlines()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["status"] == 404


def test_numbers_by_model_are_what_prometheus_reads(strict):
    from prometheus_client.parser import text_string_to_metric_families

    def metrics():
        response = strict.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        return {(s.name, *sorted(s.labels.items())): s.value for one in text_string_to_metric_families(response.text) for s in one.samples}

    before = metrics()
    strict.post("/v1/completions", {"model": "base", "prompt": [5] * 7, "max_tokens": 3, "temperature": 0, "ignore_eos": True, "n": 2})
    for name in ("x", "y"):
        strict.post("/v1/completions", {"model": name, "prompt": "x"})
    after = metrics()

    def grown(name, **labels):
        key = (name, *sorted(labels.items()))
        return after[key] - before.get(key, 0)

    assert grown("graft_requests_total", model="base", outcome="finished") == 1
    assert grown("graft_tokens_total", model="base", kind="prompt") == 7
    assert grown("graft_tokens_total", model="base", kind="generated") == 6
    assert grown("graft_first_token_seconds_count", model="base") == 1
    assert grown("graft_queue_seconds_bucket", model="base", le="+Inf") == 1
    assert grown("graft_http_responses_total", status="404") == 2
    assert grown("graft_requests_for_unknown_models_total") == 2
    assert not [key for key in after if ("model", "x") in key]
    assert after["graft_slots",] == 4


def test_limits_that_mean_nothing_are_refused():
    with pytest.raises(ServeError, match="requests"):
        Limits(requests=0)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"])
def test_a_connection_without_a_request_is_closed(strict, sent):
    """Else those who send nothing, or slowly, take the places of all others, for which no key is needed."""
    with socket.create_connection(("127.0.0.1", strict.port), timeout=10) as silent:
        began, found = time.monotonic(), b""
        silent.sendall(sent)
        while more := silent.recv(4096):
            found += more
        assert 0.9 < time.monotonic() - began < 9  # uvicorn itself waits 5 s for what follows a response
    assert (b"200 OK" in found) == sent.endswith(b"/hea")


def test_a_long_answer_is_no_silent_connection(strict):
    with httpx.Client(base_url=strict.url, timeout=60) as client:
        began = time.monotonic()
        while time.monotonic() - began < 1.5:  # one connection, longer than a head may take
            assert client.post("/v1/completions", json=LONG).json()["usage"]["completion_tokens"] == 450
            time.sleep(0.2)
