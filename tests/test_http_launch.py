"""`graft serve` as a program: its banner, its errors, and its end, which is no answer's."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from graft import cli
from graft.errors import ServeError
from graft.serve.http import launch
from graft.serve.sizes import room_for, token_bytes
from http_server import ADMIN, KEY, save_adapters


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("launch")
    tiny_llama.save_pretrained(folder / "tiny")
    tiny_tokenizer.save_pretrained(folder / "tiny")
    save_adapters(folder / "adapters", tiny_llama)
    os.symlink(folder / "adapters" / "cards", folder / "adapters" / "bad")
    (folder / "adapters" / "spoilt").mkdir()
    (folder / "adapters" / "spoilt" / "adapter_config.json").write_text("{")
    (folder / "key").write_text(KEY + "\n")
    (folder / "admin").write_text(ADMIN)
    return folder


@pytest.fixture
def graft(place, monkeypatch, capsys):
    """Runs a command in the folder; gives its exit code and everything it printed, as words."""

    def run(*words):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["graft", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, " ".join((printed.out + printed.err).split())

    monkeypatch.setattr(cli.err, "_file", None)
    return run


@pytest.fixture(scope="module")
def program(place):
    """(process, port, what it said until it listened), with both keys."""
    words = [
        sys.executable,
        "-m",
        "graft.cli",
        "serve",
        "tiny",
        "--adapters",
        "adapters",
        "--port",
        "0",
        "--api-key-file",
        "key",
        "--slots",
        "3",
    ]
    environment = os.environ | {"GRAFT_ADMIN_KEY": ADMIN, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    said = ""
    while "╰" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    port = int(re.search(r"http://127.0.0.1:(\d+)/v1", said)[1])
    rest = []
    reader = threading.Thread(target=lambda: rest.extend(process.stderr))
    reader.start()
    until = time.monotonic() + 20
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/ready")
            break
        except httpx.ConnectError:
            assert time.monotonic() < until
            time.sleep(0.05)
    yield process, port, said, rest
    process.kill()
    process.wait()
    reader.join()
    process.stderr.close()
    process.stdout.close()


def test_a_server_from_its_banner_to_its_end(program):
    """One test, since a program takes its time to start: what it says, that it answers, and how it ends."""
    banner_says_what_is_served(program)
    it_answers_with_the_key_of_the_file(program)
    told_to_stop_it_finishes_what_runs_and_ends_well(program)


def banner_says_what_is_served(program):
    _, port, said, _ = program
    for part in (
        "tiny",
        "on cpu",
        "7: cards, doors, eyes, front, soft, spoilt, waist",
        f"http://127.0.0.1:{port}/v1",
        "needed",
        "set",
        "3 adapters",
    ):
        assert part in said, part
    assert "left out" in said
    assert "'bad' cannot be served: its folder is a link" in " ".join(said.replace("│", " ").split())
    assert KEY not in said
    assert ADMIN not in said


def it_answers_with_the_key_of_the_file(program):
    _, port, _, _ = program
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        names = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert names == ["tiny", "cards", "doors", "eyes", "front", "soft", "spoilt", "waist"]
        for name in names:
            response = client.post("/v1/completions", json={"model": name, "prompt": "Where", "max_tokens": 2})
            assert response.status_code == (400 if name == "spoilt" else 200), response.text
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 401


def told_to_stop_it_finishes_what_runs_and_ends_well(program):
    process, port, _, rest = program
    body = {"model": "cards", "prompt": "Where", "max_tokens": 150, "ignore_eos": True, "stream": True, "temperature": 0}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        got = [next(lines)]
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
        got += [line for line in lines if line]
    assert got[-1] == "data: [DONE]"
    assert json.loads(got[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert process.wait(20) == 0
    time.sleep(0.1)
    said = "".join(rest)
    assert "Stopped." in said
    assert "Traceback" not in said
    logged = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line["status"] for line in logged if line.get("completion_tokens") == 150] == [200]
    assert KEY not in said


ERRORS = {
    "taken": (
        ["--port", "{taken}"],
        "cannot listen on 127.0.0.1 port {taken}: Address already in use; choose another with --host and --port",
    ),
    "no_port": (["--port", "99999"], "cannot listen on 127.0.0.1 port 99999"),
    "no_address": (["--host", "192.0.2.7", "--api-key-file", "key"], "cannot listen on 192.0.2.7"),
    "no_folder": (["--adapters", "elsewhere"], "there is no folder elsewhere to take adapters from"),
    "open": (["--host", "0.0.0.0"], "can be reached from other machines: give an API key"),
    "no_key": (["--api-key-file", "nowhere"], "no key can be read from nowhere: No such file or directory"),
    "short_key": (["--api-key-file", "tiny/config.json"], "the API key must have at least 16 characters"),
    "same_key": (["--api-key-file", "key", "--admin-key-file", "key"], "the admin key must be another than the API key"),
    "memory": (["--host-memory", "much"], "write a size such as 24GB"),
    "timeout": (["--timeout", "0"], "seconds = 0.0 lets nothing through"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_each_mistake_gets_one_sentence_before_the_model_is_loaded(graft, case, monkeypatch):
    def loading(*_, **__):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(launch, "load", loading)
    words, said = ERRORS[case]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        code, printed = graft("serve", "tiny", *[word.format(taken=taken) for word in words])
    assert code == 2
    assert said.format(taken=taken) in printed
    assert "Traceback" not in printed


def test_a_base_that_is_not_there_is_said(graft):
    code, printed = graft("serve", "./nowhere", "--port", "0")
    assert code == 2
    assert "there is no model at './nowhere'" in printed


def test_what_is_not_installed_is_named(graft, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("graft.serve.extra.find_spec", lambda name: None if name == "uvicorn" else found(name))
    code, printed = graft("serve", "tiny")
    assert code == 2
    assert "graft serve needs uvicorn: pip install 'graft-peft[serve]'" in printed


def test_an_adapter_with_the_bases_name_is_left_out(place, tiny_llama, tiny_tokenizer):
    from graft.serve.root import Root
    from http_server import engine_for

    engine = engine_for(tiny_llama, tiny_tokenizer)
    said = launch.register(engine, Root(place / "adapters"), "cards")
    assert [one for one in said if "'cards' has the base's name" in one]
    assert "cards" not in [one.name for one in engine.adapters()]
    engine.close()


def test_the_room_is_that_of_the_model(tiny_llama):
    assert token_bytes(tiny_llama) == 2 * 2 * 2 * 8 * 4
    room = room_for(tiny_llama, cached=100, requests=3)
    assert (room.cached, room.requests, room.batch) == (100, 3, room_for(tiny_llama).batch)


def test_a_key_is_never_on_the_command_line():
    with pytest.raises(ServeError):
        launch.key_of("/nowhere", "GRAFT_API_KEY")
    assert "api_key" not in launch.ServeJob.__dataclass_fields__
