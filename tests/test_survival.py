"""Survival: an adapted model that is copied, cast, checkpointed, saved and resumed, and cached in every way is still the same model."""

import copy
import warnings

import pytest
import torch

import graft
from settings import SETTINGS
from test_laws import close, greedy, logits, made, padded, shake
from tiny import inputs, tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Trainer, TrainingArguments

FEW = ("lora_rows", "dora", "ia3", "parallel", "full", "prefix_mlp", "prompt+lora")
DTYPES = (torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("setting", FEW)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_deep_copy_of_an_adapted_model_is_another_one(name, setting):
    adapted, batch = made(name, setting, torch.float32), inputs(name)
    adapted.add("other", made(name, "prefix+lora", torch.float32, 9).adapter())
    before = logits(adapted.model, batch)
    twin = copy.deepcopy(adapted)
    assert twin.model is not adapted.model
    mine = {value.data_ptr() for value in adapted.model.parameters()}
    assert not mine & {value.data_ptr() for value in twin.model.parameters()}
    shake(adapted, 11)
    assert torch.equal(logits(twin.model, batch), before)
    twin.route(["other", "live"])
    mixed = logits(twin.model, batch)
    close(mixed[1:], before[1:], 2e-5)
    close(mixed[:1], logits(made(name, "prefix+lora", torch.float32, 9).model, {key: value[:1] for key, value in batch.items()}), 2e-5)
    twin.route(None)
    twin.detach()
    assert torch.equal(logits(twin.model, batch), logits(tiny(name), batch))
    assert not torch.equal(logits(adapted.model, batch), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", FEW)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cast_model_is_the_same_in_another_precision(name, setting, dtype):
    batch = inputs(name)
    adapted = made(name, setting, torch.float32)
    adapted.add("other", made(name, "dora", torch.float32, 9).adapter())
    adapted.add("whole", made(name, "full", torch.float32, 9).adapter())
    adapted.add("first", made(name, "prefix", torch.float32, 9).adapter())
    expected = logits(adapted.model, batch)
    adapted.route(["other", "whole"])
    routed = logits(adapted.model, batch)
    adapted.route(None)
    adapted.model.half() if dtype == torch.float16 else adapted.model.to(dtype)
    bound = {torch.float64: 2e-6, torch.bfloat16: 8e-2, torch.float16: 1e-2}[dtype]
    found = logits(adapted.model, batch)
    assert found.dtype == dtype
    close(found.float(), expected, bound)
    adapted.route(["other", "whole"])
    close(logits(adapted.model, batch).float(), routed, bound)
    adapted.route(["first", None])
    assert logits(adapted.model, batch).dtype == dtype
    adapted.route(None)
    loss = adapted.model(**batch).logits.float().square().mean()
    assert all(bool(torch.isfinite(value).all()) for value in torch.autograd.grad(loss, adapted.parameters()))


@pytest.mark.parametrize("setting", FEW)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_evaluation_is_the_same_with_and_without_gradients(name, setting):
    adapted, batch = made(name, setting), inputs(name)
    with torch.inference_mode():
        first = adapted.model(**batch).logits
    with_gradients = adapted.model(**batch).logits
    assert with_gradients.requires_grad
    close(with_gradients.detach(), first.clone(), 2e-5 if setting.startswith("prompt") else 1e-12)
    assert torch.equal(logits(adapted.model, batch), first)
    with_gradients.square().sum().backward()  # what was computed in inference mode is no part of training
    if not (name == "bert" and "prompt" in setting):
        with torch.inference_mode():
            adapted.route(["live", None])
            routed = adapted.model(**batch).logits
        close(routed[:1], first[:1].clone(), 2e-5)
        adapted.add("late", made(name, "dora", seed=9).adapter())
        adapted.route(["late", "live"])
        close(logits(adapted.model, batch)[1:], first[1:].clone(), 2e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("setting", FEW)
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_checkpointing_is_exact_in_both_modes_or_refused_before_anything_runs(name, setting, use_reentrant):
    adapted, batch = made(name, setting), inputs(name)
    model = adapted.model.train()

    def gradients():
        model.zero_grad()
        model(**batch).logits.square().sum().backward()
        return [value.grad.clone() for value in adapted.parameters()]

    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    if use_reentrant and setting == "prefix_mlp":
        with pytest.raises(graft.errors.AdapterError, match="use_reentrant=False"):
            gradients()
        return
    for mine, other in zip(gradients(), plain, strict=True):
        close(mine, other, 1e-12)


def rows():
    ids = torch.randint(3, 64, (16, 9), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


def trainer(model, folder, steps):
    options = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=0.02, report_to="none", save_steps=2, use_cpu=True,
        disable_tqdm=True, logging_strategy="no", seed=0, lr_scheduler_type="constant",
    )  # fmt: skip
    return Trainer(model, options, train_dataset=rows())


@pytest.mark.parametrize("setting", ["lora", "dora", "full", "prefix_mlp", "prompt+lora"])
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_trainer_ends_where_an_unbroken_one_does(setting, tmp_path):
    whole = made("llama", setting, torch.float32)
    trainer(whole.model, tmp_path / "whole", 4).train()
    first = made("llama", setting, torch.float32)
    trainer(first.model, tmp_path / "parts", 2).train()
    second = graft.adapt(tiny("llama"), SETTINGS[setting])
    base = {key: value.clone() for key, value in tiny("llama").state_dict().items()}
    trainer(second.model, tmp_path / "parts", 4).train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    weights = [path.name for path in (tmp_path / "parts" / "checkpoint-4").iterdir() if "model" in path.name]
    assert weights
    assert all(name.endswith((".safetensors", ".json")) for name in weights)
    for mine, other in zip(second.parameters(), whole.parameters(), strict=True):
        close(mine.detach(), other.detach(), 1e-6)
    second.detach()
    assert all(torch.equal(value, base[key]) for key, value in second.model.state_dict().items())


CACHES = {"dynamic": {}, "static": {"cache_implementation": "static", "disable_compile": True}}
"""All that run here: transformers' offloaded caches need an accelerator, its quantised ones another package."""
FORMS = ("pfeiffer", "prefix", "prefix_unshifted", "prompt", "prefix+lora")


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("setting", FORMS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3"])
def test_generation_with_any_cache_is_the_forward_without_one(name, setting, cache):
    host = tiny(name)
    if name == "mistral":
        host.config.sliding_window = 6
        for layer in host.model.layers:
            layer.self_attn.config.sliding_window = 6
    adapted = graft.adapt(host, SETTINGS[setting])
    shake(adapted)
    batch = padded(inputs(name, length=9), 2)
    batch["input_ids"][1, :4] = 0
    batch["attention_mask"][1, :4] = 0
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    oracle = greedy(host, batch["input_ids"], batch["attention_mask"], 5)
    assert torch.equal(host.generate(**batch, **options, **CACHES[cache]), oracle)
