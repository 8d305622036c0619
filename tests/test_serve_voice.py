"""How an adapter is spoken to when it is served: its own chat template and generation settings beside its tensors, else the base's."""

import copy
import json

import pytest
import torch

import graft
from graft.errors import ServeError
from graft.formats.folder import GENERATION, TEMPLATE
from graft.serve import Engine, Room, Sampling

SMALL = Room(cached=1024, batch=48, requests=8, page=4)
CHAT = [{"role": "user", "content": "where is my card?"}]
OTHER = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"


@pytest.fixture
def places(tmp_path, tiny_llama, tiny_tokenizer):
    """Folders of one adapter that are spoken to differently, and the engine's model."""
    host = graft.adapt(copy.deepcopy(tiny_llama), graft.LoRA(r=2))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in host.parameters():
            value.normal_(std=0.2)
    for name in ("plain", "other", "ends", "bad"):
        host.save(tmp_path / name, tokenizer=tiny_tokenizer)
    (tmp_path / "other" / TEMPLATE).write_text(OTHER)
    (tmp_path / "bad" / GENERATION).write_text('{"temperature": "hot", "top_p": 7}')
    return tmp_path, copy.deepcopy(tiny_llama)


def test_a_chat_is_written_by_the_adapters_own_template(places, tiny_tokenizer, caplog):
    folder, model = places
    (folder / "ends" / TEMPLATE).unlink()
    with Engine(model, tiny_tokenizer, room=SMALL) as engine:
        for name in ("plain", "other", "ends"):
            engine.register(name, folder / name)
        chatml = tiny_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=False)
        wanted = {None: chatml, "plain": chatml, "ends": chatml, "other": tiny_tokenizer("[where is my card?]")["input_ids"]}
        for name, ids in wanted.items():
            found = engine.submit(CHAT, name, Sampling(max_tokens=6, ignore_end=True)).result(60)
            assert found.usage.prompt == len(ids), name
            assert found.ids == engine.submit(ids, name, Sampling(max_tokens=6, ignore_end=True)).result(60).ids
        assert len(engine.score([CHAT], "other")[0].ids) == len(wanted["other"])
        assert engine.voice("plain") is engine.voice(None)
        assert engine.submit("where is my card?", "other").result(60).usage.prompt == len(tiny_tokenizer("where is my card?")["input_ids"])


def test_an_answer_ends_with_the_adapters_own_token_and_its_settings_are_told(places, tiny_tokenizer, caplog):
    folder, model = places
    free = Sampling(max_tokens=12, ignore_end=True)
    with Engine(copy.deepcopy(model), tiny_tokenizer, room=SMALL) as engine:
        engine.load("plain", folder / "plain")
        ids = engine.submit(CHAT, "plain", free).result(60).ids
    last = next(number for k, number in enumerate(ids) if k >= 2 and number not in ids[:k])
    settings = {"eos_token_id": [last], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_beams": 1, "repetition_penalty": 1.1}
    (folder / "ends" / GENERATION).write_text(json.dumps(settings))
    with Engine(model, tiny_tokenizer, room=SMALL) as engine:
        for name in ("plain", "ends"):
            engine.load(name, folder / name)
        found = engine.submit(CHAT, "ends", Sampling(max_tokens=12)).result(60)
        assert (found.ids, found.answers[0].reason) == (ids[: ids.index(last) + 1], "stop")
        assert last in engine.submit(CHAT, "plain", Sampling(max_tokens=12)).result(60).ids[:-1] or last == ids[-1]
        assert engine.submit(CHAT, "ends", free).result(60).ids == ids
        assert engine.voice("ends").sampling == {"temperature": 0.7, "top_p": 0.9}
        assert engine.voice("ends").ends == {last, tiny_tokenizer.eos_token_id}
        assert "repetition_penalty" in caplog.text


def test_settings_that_mean_nothing_are_refused_with_the_adapter(places, tiny_tokenizer):
    folder, model = places
    with Engine(model, tiny_tokenizer, room=SMALL) as engine:
        with pytest.raises(ServeError, match=r"the adapter 'bad' cannot be served: .*generation_config.json"):
            engine.load("bad", folder / "bad")
        assert engine.submit(CHAT).result(60).ids


def test_a_chat_without_any_template_is_refused(places, plain_tokenizer):
    folder, model = places
    (folder / "plain" / TEMPLATE).unlink()
    with Engine(model, plain_tokenizer, room=SMALL) as engine:
        engine.load("plain", folder / "plain")
        engine.load("other", folder / "other")
        for name in ("plain", None):
            with pytest.raises(ServeError, match="a chat needs a template"):
                engine.submit(CHAT, name)
        assert engine.submit(CHAT, "other").result(60).ids
