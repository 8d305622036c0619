"""The OpenAPI document is true: schemathesis asks whatever it allows, and what it does not, and every answer is as it says.

It runs as its own program, as a user would run it: all its checks, all its phases.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graft.serve.http.settings import Limits
from graft.serve.root import Root
from http_server import ADMIN, KEY, Room, engine_for, running

CONFIG = f"""
hooks = "schemathesis_hooks"
headers = {{ Authorization = "Bearer {KEY}" }}
[[operations]]
include-path-regex = "^/admin/"
headers = {{ Authorization = "Bearer {ADMIN}" }}
parameters = {{ "path.name" = "eyes" }}
[[operations]]
include-path = "/v1/models/{{model}}"
parameters = {{ "path.model" = "cards" }}
"""


@pytest.fixture(scope="module")
def locked(adapters_folder, tiny_llama, tiny_tokenizer):
    """A server with both keys, a long context and short answers."""
    root, model = Root(adapters_folder), copy.deepcopy(tiny_llama)
    model.config.max_position_embeddings = 8192
    with (
        engine_for(model, tiny_tokenizer, root, room=Room(cached=8192, batch=512, requests=32)) as engine,
        running(engine, root, api_key=KEY, admin_key=ADMIN, limits=Limits(new_tokens=3)) as found,
    ):
        yield found


def examine(server, folder, examples):
    """What schemathesis prints, and its exit code."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    program = [str(Path(sys.executable).parent / "schemathesis"), "--no-color", "--config-file", str(folder / "schemathesis.toml"), "run"]
    how = ["-n", str(examples), "--generation-deterministic"]
    run = subprocess.run(
        [*program, f"{server.url}/openapi.json", *how],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        timeout=600,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def test_every_answer_is_as_the_document_says(locked, tmp_path):
    code, said = examine(locked, tmp_path, 15)
    assert code == 0, said
    assert "9 selected / 9 total" in said
    answered = locked.engine.counts().adapters
    assert sum(one.requests["finished"] for one in answered.values()) > 50
    assert not any(one.requests["failed"] for one in answered.values())
    assert locked.desk.gate.requests == 0


@pytest.mark.slow
def test_every_answer_is_as_the_document_says_a_thousand_times(locked, tmp_path):
    code, said = examine(locked, tmp_path, 1000)
    assert code == 0, said
