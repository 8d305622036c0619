"""Robustness: many adapters come and go, and an adapted model survives being copied, cast, saved, resumed, cached and checkpointed."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from graft.errors import AdapterError
from test_laws import close, logits, made
from tiny import inputs, tiny

FEW = ("lora", "lora_rows", "dora", "ia3", "houlsby", "parallel", "bias", "norm", "full", "prefix_mlp", "prompt", "lora+head")


def adapter(setting, seed, name="llama"):
    return made(name, setting, torch.float32, seed).adapter()


def alone(setting, seed, batch, name="llama"):
    """What an adapter gives when it is the live one."""
    return logits(made(name, setting, torch.float32, seed).model, batch)


def held(model):
    """Bytes of everything that routing keeps in the model, and how many tensors and modules it has."""
    tensors = [value for _, value in model.named_buffers()]
    return sum(value.numel() * value.element_size() for value in tensors), len(tensors), sum(1 for _ in model.modules())


@pytest.mark.parametrize("setting", FEW)
def test_adapters_come_go_and_are_replaced_and_the_others_stay_as_they_are(setting):
    batch = inputs("llama", rows=1)
    host = made("llama", "lora", torch.float32)
    host.add("stays", adapter("dora", 5))
    for number in range(12):  # more than there are slots at first
        host.add(f"a{number}", adapter(setting, 20 + number))
    assert host.names == ["live", "stays", *(f"a{number}" for number in range(12))]
    for name, own in {"a0": (setting, 20), "a11": (setting, 31), "stays": ("dora", 5)}.items():
        host.route([name])
        close(logits(host.model, batch), alone(*own, batch), 2e-5)
    host.add("a11", adapter("lora_rows", 77), replace=True)
    host.route(["a11"])
    close(logits(host.model, batch), alone("lora_rows", 77, batch), 2e-5)
    host.route(None)
    for number in range(12):
        host.remove(f"a{number}")
    host.add("new", adapter("ia3", 40))
    for name, own in {"new": ("ia3", 40), "stays": ("dora", 5), "live": ("lora", 3)}.items():
        host.route([name])
        close(logits(host.model, batch), alone(*own, batch), 2e-5)
    host.route([None])
    assert torch.equal(logits(host.model, batch), logits(tiny("llama"), batch))


def test_two_hundred_adapters_coming_and_going_leave_no_memory():
    host = made("llama", "lora", torch.float32)
    kinds = [adapter(setting, 9) for setting in FEW]

    def come_and_go(number):
        host.add("x", kinds[number % len(kinds)])
        host.route(["x"])
        host.route(None)
        host.remove("x")

    for number in range(len(kinds)):
        come_and_go(number)
    before = held(host.model)
    for number in range(200):
        come_and_go(number)
    assert held(host.model) == before
    assert not host.wiring.door().routed
    assert not any(slot.routed_twins for slot in host.wiring.slots.values())


def test_a_removed_adapter_is_let_go():
    host = made("llama", "lora", torch.float32)
    one = adapter("full", 4)
    kept = weakref.ref(next(iter(next(iter(one.parts[0][1].values())).values())))
    host.add("x", one)
    host.remove("x")
    del one
    gc.collect()
    assert kept() is None


def test_what_is_replaced_while_it_is_routed_runs_at_once():
    batch = inputs("llama", rows=2)
    for first, second in (("lora", "dora"), ("prefix", "prompt"), ("norm", "prefix")):
        host = made("llama", "lora", torch.float32)
        host.add("x", adapter(first, 5))
        host.route(["x", "live"])
        host.add("x", adapter(second, 6), replace=True)
        close(logits(host.model, batch)[:1], alone(second, 6, {key: value[:1] for key, value in batch.items()}), 2e-5)


def test_names_are_checked_and_a_failure_changes_nothing():
    host = made("bert", "lora", torch.float32)
    host.add("x", adapter("dora", 5, "bert"))
    batch = inputs("bert", rows=1)
    for act, match in (
        (lambda: host.add("x", adapter("dora", 5, "bert")), "taken"),
        (lambda: host.add("live", adapter("dora", 5, "bert"), replace=True), "taken"),
        (lambda: host.remove("y"), "there are x"),
        (lambda: host.remove("live"), "there are x"),
        (lambda: host.route(["y"]), "live, x"),
        (lambda: host.add("y", adapter("prompt", 5, "bert")), "encoder"),
        (lambda: host.add("x", adapter("prompt", 5, "bert"), replace=True), "encoder"),
        (lambda: host.add("y", adapter("lora", 5)), "another base"),
        (lambda: host.add("y", replace(adapter("lora", 5), fingerprint="")), "no such place"),
    ):
        with pytest.raises(AdapterError, match=match):
            act()
        assert host.names == ["live", "x"]
    host.route(["x"])
    close(logits(host.model, batch), alone("dora", 5, batch, "bert"), 2e-5)
    with pytest.raises(AdapterError, match="routed to 'x' now"):
        host.remove("x")


def test_what_overflows_in_one_adapter_is_nothing_to_another_row():
    host = made("gpt2", "lora", torch.float32)
    wild = adapter("lora", 5, "gpt2")
    for tensors in wild.parts[0][1].values():
        tensors["A"].fill_(1e38)
        tensors["B"].fill_(1e38)
    host.add("wild", wild)
    batch = inputs("gpt2")
    host.route(["wild", "live"])
    mixed = logits(host.model, batch)
    host.route(None)
    close(mixed[1:], logits(host.model, {key: value[1:] for key, value in batch.items()}), 2e-5)


def test_an_adapter_is_added_from_its_folder(tmp_path):
    made("llama", "ia3", torch.float32, 8).save(tmp_path)
    host = made("llama", "lora", torch.float32)
    host.add("x", tmp_path)
    host.route(["x", None])
    batch = inputs("llama")
    close(logits(host.model, batch)[:1], alone("ia3", 8, {key: value[:1] for key, value in batch.items()}), 2e-5)


def test_loading_one_more_costs_the_same_however_many_there_are():
    host, seen = made("llama", "lora", torch.float32), []
    one = adapter("lora", 5)

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen[-1] += 1
            return func(*args, **(kwargs or {}))

    for number in range(31):
        seen.append(0)
        with Count():
            host.add(f"a{number}", one)
    assert max(seen[20:]) <= 1.1 * seen[2]
