"""Serving: rows of every method and of the base in one batch are, token for token, what the same adapter gives alone without a cache."""

import functools
import gc
import sys
import time
import weakref

import pytest
import torch

import graft
from graft.errors import ServeError
from graft.model.slots import Slot
from graft.serve import Engine, Room, Sampling, batching
from graft.serve.turns import TURN
from settings import SETTINGS
from tiny import tiny

SERVED = tuple(name for name, methods in SETTINGS.items() if not any(method.kind == "selective" for method in methods))
SMALL = Room(cached=2048, batch=24, requests=48, page=4)
NEW = 10
GREEDY = Sampling(max_tokens=NEW)
LONG = Sampling(max_tokens=120)


def base(name="llama", dtype=torch.float32):
    model = tiny(name, dtype)
    model.generation_config.eos_token_id = None
    return model


def shaken(setting, seed=3, name="llama", dtype=torch.float32):
    host = graft.adapt(base(name, dtype), SETTINGS[setting])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in host.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))
    return host


@functools.cache
def adapter(setting, seed=3, name="llama", dtype=torch.float32):
    return shaken(setting, seed, name, dtype).adapter()


@functools.cache
def alone(setting, ids, new=NEW, seed=3, name="llama", dtype=torch.float32):
    """What the adapter answers by itself: greedy tokens of forwards without a cache."""
    model = base(name, dtype) if setting is None else shaken(setting, seed, name, dtype).model
    found = list(ids)
    for _ in range(new):
        with torch.no_grad():
            found.append(int(model(input_ids=torch.tensor([found]), use_cache=False).logits[0, -1].argmax()))
    return found[len(ids) :]


def prompt(length, seed=0):
    return tuple(torch.randint(3, 64, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def watched(engine):
    """The slots of each batch that the engine runs."""
    seen, fill = [], engine.floor.fill

    def filled(batch, rows):
        out = fill(batch, rows)
        seen.append([engine.floor.running[one.name].entry for one in batch if one.name in engine.floor.running])
        return out

    engine.floor.fill = filled
    return seen


def together(engine, rows, sampling=GREEDY):
    """Handles of (setting, ids) that are asked between two batches, so that no pace of the machine lets one run ahead of the others."""
    return engine.floor.run(lambda: [engine.submit(ids, called(setting), sampling) for setting, ids in rows])


def loaded(*settings, slots=None, room=SMALL, name="llama", dtype=torch.float32, **options):
    engine = Engine(base(name, dtype), slots=slots or max(1, len(settings)), room=room, **options)
    for setting in settings:
        engine.load(called(setting), adapter(setting, 3, name, dtype))
    return engine


def called(setting):
    return setting and setting.replace("+", ".")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", torch.float64),
        ("llama_bias", torch.float32),
        ("qwen3", torch.float32),
        ("phi3", torch.float32),
        ("mistral", torch.float32),
    ],
)
def test_rows_of_every_method_in_one_batch_are_the_rows_alone(name, dtype):
    settings = SERVED
    rows = [(setting, prompt(length, length)) for length in (5, 11) for setting in (None, *settings)]
    room = Room(cached=4096, batch=120, requests=40, page=4)  # few steps until all run, so that none has ended by then
    with loaded(*settings, room=room, name=name, dtype=dtype) as engine:
        seen = watched(engine)
        for (setting, ids), handle in zip(rows, together(engine, rows), strict=True):
            assert handle.result(60).ids == alone(setting, ids, NEW, 3, name, dtype), setting
        assert max(len(set(entries)) for entries in seen) == len(settings) + 1  # all at once: every pair, and the base
        again = engine.batching.shared
        assert engine.submit(prompt(11, 11), called(settings[0]), GREEDY).result(60).ids == alone(
            settings[0], prompt(11, 11), NEW, 3, name, dtype
        )
        assert engine.batching.shared > again  # from the cache


@pytest.mark.parametrize("salted", [True, False])
def test_what_is_cached_is_shared_within_an_adapter_alone(salted):
    """Equal prompts through every adapter, one after another, hit the cache at the second time only; without salts they would be wrong."""
    settings, ids = ("lora", "dora", "ia3", "houlsby", "bias", "prefix", "prompt"), prompt(17)
    with loaded(*settings) as engine:
        if not salted:
            engine.batching.salted = lambda name, ids: list(ids)
        right = [engine.submit(ids, one, GREEDY).result(60).ids == alone(one, ids) for one in (None, *settings)]
        first = engine.batching.shared
        right += [engine.submit(ids, one, GREEDY).result(60).ids == alone(one, ids) for one in (None, *settings)]
        assert all(right) == salted
        if salted:
            assert first == 0
            assert engine.batching.shared - first >= 16 * 8  # four pages of the text each, and a prefix's or prompt's own


def test_prompts_in_chunks_and_prefixes_of_different_lengths():
    settings = ("prefix", "prefix_unshifted", "prefix_mlp", "prompt", "prefix+lora", "prompt+lora")
    room = Room(cached=1024, batch=9, requests=9, page=4)
    with loaded(*settings, room=room) as engine:
        seen = watched(engine)
        rows = [(one, prompt(23)) for one in (*settings, None)]
        for (one, ids), handle in zip(rows, together(engine, rows, Sampling(max_tokens=24)), strict=True):
            assert handle.result(60).ids == alone(one, ids, 24), one
        assert any(len(set(entries)) > 3 for entries in seen)


def test_a_prefix_without_a_shift_where_positions_are_counted():
    with loaded("prefix_unshifted", "lora") as engine:
        for ids in (prompt(1), prompt(9)):
            assert engine.submit(ids, "prefix_unshifted", GREEDY).result(60).ids == alone("prefix_unshifted", ids)


def test_a_batch_of_the_base_alone_runs_as_if_no_adapter_were_there(monkeypatch):
    """No module's slot runs in it, nor is anything asked of the slots while who waits has a deadline; adapters go on being right."""
    ran, forward = [], Slot.forward

    def counted(self, *args):
        ran.append(self)
        return forward(self, *args)

    monkeypatch.setattr(Slot, "forward", counted)
    with loaded("lora", "prefix") as engine:
        for one in ("lora", None, "prefix", None, "lora"):
            ran.clear()
            asked, state = [], engine.slots.state
            monkeypatch.setattr(engine.slots, "state", lambda asked=asked, state=state: asked.append(1) or state())
            assert engine.submit(prompt(9), one, GREEDY, deadline=60).result(60).ids == alone(one, prompt(9)), one
            assert bool(ran) == (one is not None)
            assert len(asked) <= 1
        assert engine.score([prompt(9)], "lora")
        assert engine.submit(prompt(9), None, GREEDY).result(60).ids == alone(None, prompt(9))


def test_the_head_sees_the_slots_of_the_positions_it_runs_at():
    with loaded("dora_embedding", "bias_targets") as engine:
        rows = [(one, prompt(9)) for one in ("dora_embedding", "bias_targets", None)]
        for (one, ids), handle in zip(rows, together(engine, rows), strict=True):
            assert handle.result(60).ids == alone(one, ids), one


def test_a_name_that_is_loaded_again_is_its_new_content_at_once():
    ids = prompt(17)
    with loaded("lora", "prefix") as engine:
        for one in ("lora", "prefix"):
            assert engine.submit(ids, one, GREEDY).result(60).ids == alone(one, ids)
            engine.load(one, adapter(one, seed=8))
            assert engine.submit(ids, one, GREEDY).result(60).ids == alone(one, ids, seed=8) != alone(one, ids)


def test_a_request_ends_with_the_content_it_began_with():
    ids = prompt(9)
    with loaded("lora", slots=3) as engine:
        handle = engine.submit(ids, "lora", LONG)
        next(iter(handle))
        engine.load("lora", adapter("lora", seed=8))
        later = engine.submit(ids, "lora", GREEDY)
        assert handle.result(60).ids == alone("lora", ids, 120)
        assert later.result(60).ids == alone("lora", ids, seed=8)
        assert engine.adapters()[0].running == 0


def test_few_slots_serve_many_adapters_while_others_run():
    names = ("lora", "dora", "ia3", "houlsby", "bias", "prefix", "prompt", "prefix+lora", "pfeiffer")
    with loaded(*names, slots=2) as engine:
        steady = engine.submit(prompt(5), "lora", LONG), engine.submit(prompt(5), None, LONG)
        handles = [(one, k, engine.submit(prompt(6 + k), called(one), GREEDY)) for k in range(3) for one in names]
        for one, k, handle in handles:
            assert handle.result(60).ids == alone(one, prompt(6 + k)), one
        assert steady[0].result(60).ids == alone("lora", prompt(5), 120)
        assert steady[1].result(60).ids == alone(None, prompt(5), 120)
        assert engine.slots.evictions >= len(names) - 2
        assert sum(served.slot is not None for served in engine.adapters()) == 2
        for path in engine.wiring.slots:
            for pack in engine.wiring.slots[path].packs.values():
                assert len(pack.of) <= 3 * 8  # columns of the few on the device, not of the many


def test_an_unloaded_adapter_gives_everything_back():
    with loaded("lora", "houlsby", "prefix", "prompt") as engine:
        for one in ("lora", "houlsby", "prefix", "prompt"):
            engine.submit(prompt(5), one, GREEDY).result(60)
        held = [weakref.ref(value) for entry in engine.library.entries.values() for value in entry.prepared.tensors()]
        assert engine.rows.kv.value is not None
        running = engine.submit(prompt(9), "lora", LONG)
        next(iter(running))
        for one in ("lora", "houlsby", "prefix", "prompt"):
            engine.unload(one)
        with pytest.raises(ServeError, match="no adapter 'lora' is served here: there are none"):
            engine.submit(prompt(5), "lora", GREEDY)
        assert running.result(60).ids == alone("lora", prompt(9), 120)
        engine.floor.run(lambda: None)
        gc.collect()
        assert not any(value() is not None for value in held)
        assert engine.rows.kv.value is None
        assert engine.rows.embeddings.value is None
        assert not any(slot.packs for slot in engine.wiring.slots.values())
        assert len(engine.slots.free) == 4
        engine.load("lora", adapter("lora", seed=8))  # and the slot serves again
        assert engine.submit(prompt(5), "lora", GREEDY).result(60).ids == alone("lora", prompt(5), seed=8)


def test_unloading_with_cancel_ends_its_requests():
    with loaded("lora", "ia3") as engine:
        handle, other = engine.submit(prompt(5), "lora", Sampling(max_tokens=400)), engine.submit(prompt(5), "ia3", LONG)
        next(iter(handle))
        engine.unload("lora", cancel=True)
        result = handle.result(60)
        assert result.answers[0].reason == "cancelled"
        assert len(result.ids) < 400
        assert other.result(60).ids == alone("ia3", prompt(5), 120)


def test_a_cancelled_request_stops_and_frees_its_slot():
    with loaded("lora", "ia3", slots=1) as engine:
        handle = engine.submit(prompt(5), "lora", Sampling(max_tokens=400))
        token = next(iter(handle))
        waiting = engine.submit(prompt(5), "ia3", GREEDY)
        handle.cancel()
        assert waiting.result(60).ids == alone("ia3", prompt(5))
        result = handle.result(60)
        assert result.ids[0] == token.id
        assert result.answers[0].reason == "cancelled"
        queued = engine.submit(prompt(5), "lora", GREEDY)
        queued.cancel()
        assert queued.result(60).answers[0].reason == "cancelled"
        engine.floor.run(lambda: None)
        assert not engine.floor.running


def test_registered_folders_are_read_when_asked_for_and_leave_host_memory(tmp_path):
    names = ("lora", "ia3", "bias", "prefix", "prompt", "houlsby")
    for one in names:
        shaken(one).save(tmp_path / one)
    with Engine(base(), slots=1, room=SMALL, host_bytes=20_000) as engine:
        for one in names:
            engine.register(one, tmp_path / one)
        assert not engine.library.entries
        for _ in range(2):
            for one in names:
                assert engine.submit(prompt(7), one, GREEDY).result(60).ids == alone(one, prompt(7)), one
        held = [entry for entry in engine.library.entries.values() if entry.prepared is not None]
        assert 1 <= len(held) < len(names)
        gone = next(entry for entry in engine.library.entries.values() if entry.prepared is None and entry.slot is None)
        shaken(gone.name, seed=8).save(tmp_path / gone.name)
        with pytest.raises(ServeError, match=f"the adapter '{gone.name}' .* is not what was loaded: load it again"):
            engine.submit(prompt(7), gone.name, GREEDY).result(60)
        engine.load(gone.name)
        assert engine.submit(prompt(7), gone.name, GREEDY).result(60).ids == alone(gone.name, prompt(7), seed=8)


def test_the_hundredth_adapter_loads_as_the_first():
    """What loading touches does not grow: it is counted, since clocks lie."""
    with Engine(base(), slots=2, room=SMALL) as engine:
        counted = []
        for number in range(100):
            before = engine.wiring.slots and sum(len(pack.of) for slot in engine.wiring.slots.values() for pack in slot.packs.values())
            engine.load(f"a{number}", adapter("lora"))
            engine.submit(prompt(3), f"a{number}", Sampling(max_tokens=1)).result(60)
            counted.append(before)
        assert counted[-1] == counted[10]
        assert len(engine.library.entries) == 100


def test_usage_counts_virtual_tokens_beside_the_texts():
    with loaded("prefix", "prompt") as engine:
        for one, n in ((None, 0), ("prefix", 4), ("prompt", 5)):
            usage = engine.submit(prompt(7), one, GREEDY).result(60).usage
            assert (usage.prompt, usage.virtual, usage.completion, usage.total) == (7, n, NEW, 7 + n + NEW)


def test_the_model_is_as_it_was_after_serving():
    model = base()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([prompt(9)])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with Engine(model, room=SMALL) as engine:
        engine.load("lora", adapter("lora"))
        engine.submit(prompt(5), "lora", GREEDY).result(60)
    assert model.config._attn_implementation == "sdpa"
    assert {name: value for name, value in model.named_parameters() if value.requires_grad}.keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, wanted)


def test_an_engine_stops_starts_and_answers_what_was_asked():
    engine = loaded("lora")
    with pytest.raises(ServeError, match=r"the engine does not run: start\(\) it"):
        engine.submit(prompt(5), "lora")
    for _ in range(2):
        engine.start()
        handle = engine.submit(prompt(5), "lora", GREEDY)
        engine.stop()
        assert handle.result(0).ids == alone("lora", prompt(5))
    engine.start()
    handle = engine.submit(prompt(5), "lora", Sampling(max_tokens=400))
    engine.stop(now=True)
    with pytest.raises(ServeError, match=r"a request for the adapter 'lora' \(lora\)"):
        handle.result(5)
    engine.close()


def test_what_cannot_be_served_is_refused_by_name(tmp_path):
    with loaded("prefix") as engine:
        for setting, kind in (("last", "selective"), ("lora+head", "lora [+] selective")):
            with pytest.raises(ServeError, match=rf"the adapter 'x' \({kind}\) trains whole modules \(selective\)"):
                engine.load("x", adapter(setting))
        with pytest.raises(ServeError, match=r"the adapter 'x' \(dora\) changes nothing"):
            engine.load("x", graft.adapt(base(), SETTINGS["dora"]).adapter())
        with pytest.raises(ServeError, match=r"the adapter 'x' \(lora\) cannot be served: .*made for another base"):
            engine.load("x", adapter("lora", name="qwen3"))
        for name in ("", "../x", ".x", "a/b", "x" * 200, "a b"):
            with pytest.raises(ServeError, match="is no name for an adapter"):
                engine.load(name, adapter("lora"))
        with pytest.raises(ServeError, match="'x' cannot be registered: there is no adapter_config"):
            engine.register("x", tmp_path)
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(ServeError, match="the adapter name 'prefix' is taken"):
            engine.register("prefix", tmp_path)
        with pytest.raises(ServeError, match="the adapter 'x' cannot be served: cannot load the adapter in"):
            engine.load("x", tmp_path)
        with pytest.raises(ServeError, match="no adapter 'x' is here to unload: there are prefix"):
            engine.unload("x")
        with pytest.raises(ServeError, match="ids lie between 0 and 63"):
            engine.submit([64], "prefix")
        with pytest.raises(ServeError, match="at least one token"):
            engine.submit([], "prefix")
        with pytest.raises(ServeError, match="5 tokens and 4 virtual ones of 'prefix' and max_tokens = 3000 are more than fit"):
            engine.submit(prompt(5), "prefix", Sampling(max_tokens=3000))
        with pytest.raises(ServeError, match="needs a tokenizer"):
            engine.submit("a text", "prefix")
        assert engine.submit(prompt(5), "prefix", GREEDY).result(60).ids == alone("prefix", prompt(5))


def test_callers_hear_of_it_when_the_engine_dies():
    with loaded("lora", slots=1) as engine:
        engine.floor.choose = lambda logits, rows: 1 / 0
        handle = engine.submit(prompt(5), "lora", GREEDY)
        with pytest.raises(ServeError, match=r"a request for the adapter 'lora' \(lora\) failed: division by zero"):
            handle.result(60)
        for _ in range(500):
            if engine.floor.dead:
                break
            time.sleep(0.01)
        with pytest.raises(ServeError, match="the engine does not run: ZeroDivisionError"):
            engine.submit(prompt(5), "lora", GREEDY)


@pytest.mark.skipif(batching.minor() == "5.17", reason="there every attention function knows the cache itself")
def test_a_model_that_the_engine_cannot_run_is_refused_at_the_start():
    model = base("gpt_neox")
    with pytest.raises(ServeError, match="GPTNeoXForCausalLM does not run on transformers' continuous batching: "):
        Engine(model, room=SMALL).start()
    assert model(input_ids=torch.tensor([[3, 4]])).logits.isfinite().all()


def test_threads_take_shorter_turns_while_engines_live():
    before = sys.getswitchinterval()
    first, second = loaded(), loaded()
    with first:
        assert sys.getswitchinterval() <= TURN
        with second:
            pass
        assert sys.getswitchinterval() <= TURN
        second.start()
    assert sys.getswitchinterval() <= TURN
    second.close()
    assert sys.getswitchinterval() == before
