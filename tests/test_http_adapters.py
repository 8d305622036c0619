"""Adapters that are hostile or wrong: each is refused in one sentence that names it, and the server answers all others as before."""

import json
import os
import pickle
import shutil

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

import graft
from graft.serve import Sampling
from graft.serve.http.settings import Settings
from graft.serve.root import Root
from http_server import ADMIN, engine_for, running, save_adapters

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama):
    """A root with a good adapter, and a good one outside."""
    folder = tmp_path_factory.mktemp("place")
    save_adapters(folder / "root", tiny_llama, {"good": graft.LoRA(r=2)})
    save_adapters(folder, tiny_llama, {"outside": graft.LoRA(r=2)})
    return folder


@pytest.fixture(scope="module")
def server(place, tiny_llama, tiny_tokenizer):
    root = Root(place / "root", most_bytes=1 << 20)
    with engine_for(tiny_llama, tiny_tokenizer, root) as engine, running(engine, root, admin_key=ADMIN) as found:
        yield found


@pytest.fixture(autouse=True)
def unharmed(server):
    """Whatever was tried, the good adapter answers afterwards as it did before."""
    right = answer(server)
    yield
    assert answer(server) == right
    assert server.get("/ready").status_code == 200


def answer(server, model="good"):
    response = server.post("/v1/completions", {"model": model, "prompt": "Where is my card?", "max_tokens": 6, "temperature": 0})
    return response.json()["choices"][0]["text"]


def load(server, name):
    """The status and the sentence of loading an adapter; once loaded it is unloaded again."""
    response = httpx.put(f"{server.url}/admin/adapters/{name}", headers=HEADERS)
    if response.status_code == 200:
        assert httpx.delete(f"{server.url}/admin/adapters/{name}", headers=HEADERS).status_code == 200
        return 200, ""
    assert "Traceback" not in response.text
    return response.status_code, response.json()["error"]["message"]


def copied(place, name):
    shutil.rmtree(place / "root" / name, ignore_errors=True)
    return shutil.copytree(place / "root" / "good", place / "root" / name)


NAMES = [
    "..", "../outside", "%2e%2e%2foutside", "..%2foutside", "....//outside", "/etc", "%2Fetc%2Fpasswd", ".", ".hidden", "a/b", "good/",
    "good%00",    "good%0a", "good%20", "a" * 129, "-rf", "g\u00f6\u00f6d", "good%5c..", "~", "%24%7BHOME%7D", "C:%5Cx", "good;x", "*",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_a_path_leads_nowhere(server, name):
    for method in ("PUT", "DELETE"):
        response = httpx.request(method, f"{server.url}/admin/adapters/{name}", headers=HEADERS)
        assert response.status_code in (400, 404, 405), response.text
        assert response.json()["error"]["message"]
    assert [one.name for one in server.engine.adapters()] == ["good"]


@pytest.mark.parametrize("model", ["../outside", "/etc/passwd", "..", "good/../good", "good\x00", "\u202egood", "good ", "GOOD", "a" * 256])
def test_a_model_that_is_a_path_is_not_found(server, model):
    response = server.post("/v1/completions", {"model": model, "prompt": "x"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_link_does_not_lead_out_of_the_root(server, place):
    (place / "root" / "linked").symlink_to(place / "outside")
    status, said = load(server, "linked")
    assert status == 400
    assert "'linked'" in said
    assert "its folder is a link" in said
    (place / "root" / "linked").unlink()
    for name in (WEIGHTS, CONFIG, "chat_template.jinja"):
        folder = copied(place, "inner")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(place / "outside" / name if name != "chat_template.jinja" else "/etc/passwd")
        status, said = load(server, "inner")
        assert status == 400
        assert f"'{name}' in its folder is a link" in said
    shutil.rmtree(place / "root" / "inner")


def test_what_becomes_a_link_after_the_start_is_not_read(place, tiny_llama, tiny_tokenizer):
    copied(place, "later")
    root = Root(place / "root")
    with engine_for(tiny_llama, tiny_tokenizer, root) as engine, running(engine, root) as server:
        shutil.rmtree(place / "root" / "later")
        (place / "root" / "later").symlink_to(place / "outside")
        response = server.post("/v1/completions", {"model": "later", "prompt": "x"})
        assert response.status_code == 400
        assert "is a link" in response.json()["error"]["message"]
        assert str(place) not in response.text
        (place / "root" / "later").unlink()


def test_what_is_no_file_is_not_opened(server, place):
    folder = copied(place, "piped")
    os.mkfifo(folder / "pipe")  # to open it for reading would wait for ever
    status, said = load(server, "piped")
    assert (status, "is no plain file" in said) == (400, True)
    shutil.rmtree(folder)


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["GRAFT_TEST_TRAP"],)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", WEIGHTS])
def test_a_pickle_is_never_opened(server, place, name, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_TEST_TRAP", str(tmp_path / "sprung"))
    folder = copied(place, "pickled")
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps({"x": Trap()}))
    status, said = load(server, "pickled")
    assert status == 400
    assert "'pickled'" in said
    assert not (tmp_path / "sprung").exists()
    shutil.rmtree(folder)


def spoil_tensors(folder, change):
    path = folder / WEIGHTS
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({key: change(key, value) for key, value in tensors.items()}, path, metadata=metadata)


def spoil_config(folder, **values):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))


BAD = {
    "nan": (lambda folder: spoil_tensors(folder, lambda key, value: value * float("nan")), "not finite"),
    "infinite": (lambda folder: spoil_tensors(folder, lambda key, value: value / 0), "not finite"),
    "idle": (lambda folder: spoil_tensors(folder, lambda key, value: value * 0), "changes nothing"),
    "shape": (lambda folder: spoil_tensors(folder, lambda key, value: value.t().contiguous()), "another shape"),
    "unknown_key": (lambda folder: spoil_config(folder, use_qalora=True), "use_qalora"),
    "unknown_type": (lambda folder: spoil_config(folder, peft_type="VBLORA"), "VBLORA"),
    "rank": (lambda folder: spoil_config(folder, r=10**9), "shape"),
    "no_json": (lambda folder: (folder / CONFIG).write_text("{" * 5000), "not JSON"),
    "nan_config": (lambda folder: (folder / CONFIG).write_text('{"r": NaN}'), "NaN"),
    "header": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 64), "truncated or no safetensors"),
    "cut": (lambda folder: os.truncate(folder / WEIGHTS, 4000), "truncated"),
    "large": (lambda folder: (folder / "more.bin").write_bytes(bytes(2 << 20)), "more than"),
    "crowded": (lambda folder: [(folder / f"{number}.txt").touch() for number in range(101)], "more than 100 files"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_an_adapter_is_said_with_its_name(server, place, case):
    spoil, said = BAD[case]
    spoil(copied(place, "bad"))
    status, message = load(server, "bad")
    assert status == 400, message
    assert "'bad'" in message
    assert said in message
    assert [one.name for one in server.engine.adapters()] == ["good"]
    shutil.rmtree(place / "root" / "bad")


def test_an_adapter_of_another_base_is_refused(server, place, tiny_llama):
    import copy

    other = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    save_adapters(place / "root", other, {"foreign": graft.DoRA(r=2)})
    status, said = load(server, "foreign")
    assert status == 400
    assert "'foreign' (dora)" in said
    assert "made for another base" in said
    shutil.rmtree(place / "root" / "foreign")


def test_a_method_that_cannot_share_a_batch_is_refused_by_name(server, place, tiny_llama):
    save_adapters(place / "root", tiny_llama, {"whole": graft.Selective("last", k=1)})
    status, said = load(server, "whole")
    assert status == 400
    assert "'whole'" in said
    assert "selective" in said
    shutil.rmtree(place / "root" / "whole")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').system('true') }}",
        "{% for a in range(10**12) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no such role') }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ nothing.of.this }}",
    ],
)
def test_a_hostile_chat_template_is_its_requests_fate_alone(server, place, template):
    folder = copied(place, "talker")
    (folder / "chat_template.jinja").write_text(template)
    assert httpx.put(f"{server.url}/admin/adapters/talker", headers=HEADERS).status_code == 200
    response = server.post("/v1/chat/completions", {"model": "talker", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
    assert response.status_code == 400, response.text
    assert "'talker'" in response.json()["error"]["message"]
    assert answer(server, "talker") == answer(server)
    httpx.delete(f"{server.url}/admin/adapters/talker", headers=HEADERS)
    shutil.rmtree(folder)


def test_an_adapter_is_spoken_to_by_its_own_template(server, place):
    folder = copied(place, "parrot")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    httpx.put(f"{server.url}/admin/adapters/parrot", headers=HEADERS)
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
    right = server.engine.submit("[Hi]", "parrot", Sampling(max_tokens=8)).result(60).text
    assert server.post("/v1/chat/completions", {"model": "parrot", **asked}).json()["choices"][0]["message"]["content"] == right
    (folder / "chat_template.jinja").write_text("<{{ messages[0]['content'] }}>")
    httpx.put(f"{server.url}/admin/adapters/parrot", headers=HEADERS)  # loaded again: its template too
    right = server.engine.submit("<Hi>", "parrot", Sampling(max_tokens=8)).result(60).text
    assert server.post("/v1/chat/completions", {"model": "parrot", **asked}).json()["choices"][0]["message"]["content"] == right
    httpx.delete(f"{server.url}/admin/adapters/parrot", headers=HEADERS)
    shutil.rmtree(folder)


def test_what_a_request_does_not_state_the_adapters_settings_do(server, place):
    folder = copied(place, "calm")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    httpx.put(f"{server.url}/admin/adapters/calm", headers=HEADERS)
    body = {"prompt": "Where is my card?", "max_tokens": 6}
    said = {server.post("/v1/completions", {"model": "calm", "seed": seed, **body}).json()["choices"][0]["text"] for seed in range(4)}
    assert said == {answer(server)}  # greedy, since the adapter's settings say so
    drawn = {"model": "calm", "temperature": 2, **body}
    assert len({server.post("/v1/completions", {**drawn, "seed": seed}).json()["choices"][0]["text"] for seed in range(4)}) > 1
    httpx.delete(f"{server.url}/admin/adapters/calm", headers=HEADERS)
    shutil.rmtree(folder)


def test_loading_and_unloading_while_requests_run(server, place):
    copied(place, "busy")
    httpx.put(f"{server.url}/admin/adapters/busy", headers=HEADERS)
    body = {"model": "busy", "prompt": "Where", "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert httpx.delete(f"{server.url}/admin/adapters/busy", headers=HEADERS).json()["deleted"]
        assert server.post("/v1/completions", {"model": "busy", "prompt": "x"}).status_code == 404
        assert sum(line.startswith("data:") for line in lines) > 100  # what ran goes on to its end
    httpx.put(f"{server.url}/admin/adapters/busy", headers=HEADERS)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert httpx.delete(f"{server.url}/admin/adapters/busy?cancel=true", headers=HEADERS).json()["deleted"]
        rest = [line for line in lines if line]
    assert "unloaded" in json.loads(rest[-2].removeprefix("data: "))["error"]["message"]
    assert rest[-1] == "data: [DONE]"
    shutil.rmtree(place / "root" / "busy")


def test_without_a_folder_nothing_is_loaded(tiny_llama, tiny_tokenizer):
    with engine_for(tiny_llama, tiny_tokenizer) as engine, running(engine, None, admin_key=ADMIN) as bare:
        status, said = load(bare, "good")
        assert (status, "--adapters" in said) == (400, True)
        assert Settings("base").name == bare.get("/v1/models").json()["data"][0]["id"]
