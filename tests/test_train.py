"""Training: the exact loss, the guards, early stopping, and what is left behind when a run is stopped."""

import copy
import logging
import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from graft.compare.starts import start
from graft.data import Example, Row, collate
from graft.errors import GraftError, TrainingError
from graft.methods import METHODS
from graft.model import regional
from graft.model.adapted import adapt
from graft.model.families import is_causal
from graft.model.supervised import token_losses
from graft.train import TrainConfig, gradient, loop, step, train
from graft.train.interrupt import Interrupt
from graft.train.meter import PeakMemory
from graft.train.progress import Steps, duration
from graft.train.recipe import factor
from settings import SETTINGS
from tiny import ENCODERS, MODELS, tiny

TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=1)
SETUP = TrainConfig(learning_rate=1e-2, max_steps=6, batch_size=4, warmup=0.0)


class Plain:
    """A model some of whose own parameters are trained: what `train` asks of an adapted one."""

    def __init__(self, model, part):
        self.model = model
        for name, value in model.named_parameters():
            value.requires_grad_(part in name)

    def parameters(self):
        return [value for value in self.model.parameters() if value.requires_grad]

    def values(self):
        return [value.detach().clone() for value in self.parameters()]


def llama(part="q_proj"):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    return Plain(model, part)


def examples(count=12, seed=0):
    rng = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = int(torch.randint(5, 14, (), generator=rng))
        ids = tuple(torch.randint(2, 61, (length,), generator=rng).tolist())
        start = int(torch.randint(1, length - 1, (), generator=rng))
        made.append(Example(ids, start, Row(str(number), (), "", where=f"train.jsonl:{number + 1}")))
    return made


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def run(adapted, config=SETUP, rows=None, validation=None, **kwargs):
    return train(adapted, TOKENIZER, rows or examples(), validation, config, progress=False, **kwargs)


def test_accumulation_is_one_large_batch_in_float64():
    def trained(size, accum):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 61}
        config = BertConfig(**sizes, is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        adapted = Plain(BertLMHeadModel(config).double(), "query")
        result = run(adapted, replace(SETUP, batch_size=size, grad_accum=accum))
        return adapted.values(), [point["train_loss"] for point in result.curve]

    (large, losses), (small, accumulated) = trained(6, 1), trained(2, 3)
    assert all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in zip(large, small, strict=True))
    assert losses == pytest.approx(accumulated, abs=1e-12)


def test_the_loss_is_that_of_the_model():
    adapted, rows = llama(), examples(4)
    result = run(adapted, replace(SETUP, max_steps=1, learning_rate=1e-12), rows)
    total, count = 0.0, 0
    for example in rows:
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            log = adapted.model(ids).logits.log_softmax(-1)[0]
        total -= sum(float(log[t - 1, example.ids[t]]) for t in range(example.supervised, len(example.ids)))
        count += example.trained
    assert result.curve[0]["train_loss"] == pytest.approx(total / count, rel=1e-5)


def test_training_learns_and_reports():
    adapted = llama("")
    heard = []
    result = run(adapted, replace(SETUP, max_steps=60, schedule="cosine"), on_step=heard.append)
    assert heard[-1].loss < 0.7 * heard[0].loss
    assert (result.steps, result.stopped, len(heard)) == (60, "max_steps", 60)
    assert result.tokens == heard[-1].tokens
    assert result.seconds_per_step > 0
    assert result.tokens_per_second > 0
    assert result.peak_memory_bytes > 0
    assert not adapted.model.training
    assert all(value.grad is None for value in adapted.parameters())


def test_the_seed_decides_everything_and_the_callers_random_state_is_untouched():
    results = []
    for seed in (1, 1, 2):
        adapted = llama()
        torch.manual_seed(5)
        run(adapted, replace(SETUP, seed=seed))
        results.append((adapted.values(), torch.rand(1)))
    assert same(results[0][0], results[1][0])
    assert not same(results[0][0], results[2][0])
    assert torch.equal(results[0][1], results[2][1])


def test_checkpointing_changes_nothing():
    plain, checkpointed = llama(), llama()
    run(plain)
    run(checkpointed, replace(SETUP, checkpointing=True))
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(plain.values(), checkpointed.values(), strict=True))
    assert not checkpointed.model.model.gradient_checkpointing
    assert not checkpointed.model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_a_bfloat16_base_and_leaves_it_as_it_was(name, tiny_llama, tiny_tokenizer):
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = adapt(model, start(name, "Where is my card?"), tokenizer=tiny_tokenizer)
    rows, fresh = examples(), [value.detach().clone() for value in adapted.parameters()]
    config = replace(SETUP, max_steps=3, eval_every=1, patience=3)
    result = train(adapted, tiny_tokenizer, rows, rows[:3], config, progress=False)
    assert len(result.curve) == 3
    assert all(value.dtype == torch.float32 for value in adapted.parameters())
    assert not all(torch.equal(x, y) for x, y in zip(fresh, adapted.parameters(), strict=True))
    adapted.detach()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def spoiled(monkeypatch, since, accum=1):
    """From the given step on, the losses of the batch's second row are NaN."""
    real, calls = gradient.losses_at, []

    def losses_at(model, given, places):
        calls.append(1)
        return torch.where((places.rows == 1) & torch.tensor(len(calls) > (since - 1) * accum), torch.nan, real(model, given, places))

    monkeypatch.setattr(gradient, "losses_at", losses_at)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_row(monkeypatch):
    healthy = llama()
    run(healthy, replace(SETUP, max_steps=2, schedule="constant"))
    adapted, order = llama(), []
    monkeypatch.setattr(step, "collate", lambda part, pad, real=step.collate, **how: order.append(part) or real(part, pad, **how))
    spoiled(monkeypatch, since=3)
    with pytest.raises(TrainingError, match=r"step 3: the loss is not finite") as caught:
        run(adapted, replace(SETUP, schedule="constant"))
    assert order[-1][1].row.where in str(caught.value)
    assert order[-1][0].row.where + "," not in str(caught.value)
    assert same(adapted.values(), healthy.values())
    assert all(value.grad is None for value in adapted.parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    adapted = llama()
    before = adapted.values()
    adapted.parameters()[1].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"step 1: the gradient is not finite at model\.layers\.1\.self_attn\.q_proj"):
        run(adapted)
    assert same(adapted.values(), before)


def test_nothing_to_train_is_an_error():
    with pytest.raises(TrainingError, match="no tensor of the model is trainable"):
        run(llama("nothing"))
    with pytest.raises(TrainingError, match="no training example"):
        train(llama(), TOKENIZER, [], None, SETUP, progress=False)


def test_a_batch_without_a_supervised_token_is_an_error():
    rows = [replace(example, supervised=len(example.ids)) for example in examples()]
    with pytest.raises(TrainingError, match=r"step 1: no token to learn in rows train\.jsonl:"):
        run(llama(), rows=rows)


def test_a_module_that_no_gradient_reaches_is_named():
    adapted = llama()
    adapted.model.model.layers[1].self_attn.q_proj.weight.register_hook(torch.zeros_like)
    before = adapted.model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"no gradient reached model\.layers\.1\.self_attn\.q_proj in the first 2 steps"):
        run(adapted)
    assert not torch.equal(before, adapted.model.model.layers[0].self_attn.q_proj.weight)


def test_early_stopping_puts_the_best_tensors_back(monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 9.0])
    seen = {}
    adapted = llama()

    def evaluate(run, step):
        seen[step] = adapted.values()
        return next(losses)

    monkeypatch.setattr(loop, "_evaluate", evaluate)
    config = replace(SETUP, max_steps=50, eval_every=2, patience=2)
    result = run(adapted, config, validation=examples(5, seed=1))
    assert (result.stopped, result.steps, result.best_step, result.validation_loss) == ("early", 8, 4, 1.0)
    assert same(adapted.values(), seen[4])
    assert not same(seen[4], seen[8])


def test_validation_loss_is_that_of_the_validation_rows():
    adapted, rows = llama(), examples(5, seed=1)
    result = run(adapted, replace(SETUP, batch_size=3, eval_every=3), validation=rows)
    assert [point["step"] for point in result.curve if point["validation_loss"] is not None] == [3, 6]
    again = run(adapted, replace(SETUP, max_steps=1, learning_rate=1e-12), rows, rows)
    assert result.validation_loss == pytest.approx(again.validation_loss, rel=1e-5)


def test_ctrl_c_waits_for_the_end_of_the_step():
    reference, adapted = llama(), llama()
    run(reference, replace(SETUP, max_steps=3, schedule="constant"))

    def press(step):
        if step.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="before step 4"):
        run(adapted, replace(SETUP, schedule="constant"), on_step=press)
    assert same(adapted.values(), reference.values())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_step_is_heard_too():
    adapted = llama()

    def press(step):
        if step.step == SETUP.max_steps:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"after step {SETUP.max_steps}"):
        run(adapted, SETUP, on_step=press)


def test_a_second_ctrl_c_is_raised_at_once():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"schedule": "step"}, "linear, cosine, constant"),
        ({"patience": 2}, "patience needs eval_every"),
    ],
)
def test_a_config_that_has_no_meaning_is_refused(change, match):
    with pytest.raises(TrainingError, match=match):
        TrainConfig(**change)


def test_the_schedules():
    config = TrainConfig(max_steps=10, warmup=0.2)
    assert [factor(config, step) for step in (1, 2, 3, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.125])
    assert factor(replace(config, schedule="cosine"), 7) == pytest.approx(0.5)
    assert factor(replace(config, schedule="constant"), 10) == 1.0


def test_a_tensorboard_tracker_writes_and_an_unknown_one_is_refused(tmp_path):
    pytest.importorskip("tensorboard")
    run(llama(), replace(SETUP, max_steps=2, tracker="tensorboard", tracker_dir=str(tmp_path)))
    assert list(tmp_path.rglob("events.out.tfevents*"))
    with pytest.raises(TrainingError, match="nosuch"):
        run(llama(), replace(SETUP, tracker="nosuch"))


def test_peak_memory_sees_what_was_freed():
    with PeakMemory(torch.device("cpu")) as quiet:
        pass
    with PeakMemory(torch.device("cpu")) as busy:
        torch.ones(1 << 26).sum()
    assert busy.bytes - quiet.bytes > 0.8 * (1 << 28)


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
    with Steps(20, "lora") as shown:
        for step in range(1, 21):
            shown.update(step, 1.5, 10 * step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("lora  step 20/20  loss 1.5  ")
    assert [duration(value) for value in (42, 425, 7380)] == ["42 s", "7 min 5 s", "2 h 3 min"]


def padded(model, rows, length):
    """The losses of a batch that is padded to a length, with a mask and without."""
    batch = collate(rows, 0, multiple=length)
    plain = {name: value for name, value in batch.items() if name != "attention_mask"}
    return token_losses(model, batch)[0], token_losses(model, plain)[0]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ENCODERS])
@pytest.mark.parametrize("setting", ["lora", "prefix", "prompt", "prefix_unshifted"])
def test_padding_on_the_right_needs_no_mask_in_a_causal_model(name, setting):
    host = adapt(tiny(name), SETTINGS[setting])
    assert is_causal(host.model)
    masked, plain = padded(host.model, examples(4), 16)
    alone = torch.cat([token_losses(host.model, collate([row], 0))[0] for row in examples(4)])
    torch.testing.assert_close(plain, masked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain, alone, rtol=1e-5, atol=1e-5)


def test_an_encoder_and_an_unknown_model_keep_their_mask():
    assert not is_causal(tiny("bert"))
    model = tiny("llama")
    model.config.model_type = "nobody knows"
    assert not is_causal(model)


def test_labels_that_stay_on_the_cpu_are_read_there():
    batch, model = collate(examples(3), 0), tiny("llama")
    losses, rows = token_losses(model, batch)
    expected = [row for row, example in enumerate(examples(3)) for _ in range(example.trained)]
    assert (rows.tolist(), len(losses)) == (expected, len(expected))


@pytest.fixture
def plainly(monkeypatch):
    """Blocks are compiled to graphs that run as they are; the shapes of the batches."""
    torch._dynamo.reset()
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)
    shapes = []
    monkeypatch.setattr(regional, "inductor", lambda graph, _: graph.forward)
    real = gradient.losses_at
    monkeypatch.setattr(gradient, "losses_at", lambda model, given, places: shapes.append(given) or real(model, given, places))
    yield shapes
    torch._dynamo.reset()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_train_to_the_same_tensors(plainly, checkpointing):
    compiled, plain = llama(), llama()
    config = replace(SETUP, eval_every=3, checkpointing=checkpointing, strict=True)
    result = run(compiled, replace(config, compile="on"), validation=examples(3, seed=1))
    expected = run(plain, config, validation=examples(3, seed=1))
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(compiled.values(), plain.values(), strict=True))
    assert result.validation_loss == pytest.approx(expected.validation_loss, rel=1e-5)
    assert (expected.compiled, expected.notes) == (None, [])
    assert (result.compiled.blocks, result.notes) == (2, [])
    assert 0 < result.compiled.graphs <= 4
    assert not any("_compiled_call_impl" in vars(module) for module in compiled.model.modules())


def test_compiled_models_get_batches_of_few_lengths(plainly, monkeypatch):
    monkeypatch.setattr(step, "LENGTH", 8)
    rows = examples(30)
    run(llama(), replace(SETUP, compile="on", max_steps=8), rows)
    longest = max(len(example.ids) for example in rows)
    assert longest % 8
    assert {batch["input_ids"].shape[1] for batch in plainly} <= {8, longest}
    assert not any("attention_mask" in batch for batch in plainly)
    assert "attention_mask" not in plainly[0]


def test_a_block_that_cannot_be_compiled_is_a_note_or_an_error_if_strict(plainly):
    def broken():
        adapted = llama()
        mlp = adapted.model.model.layers[1].mlp
        mlp.forward = lambda x, inner=mlp.forward: torch._dynamo.graph_break() or inner(x)
        return adapted

    adapted, plain = broken(), llama()
    result = run(adapted, replace(SETUP, compile="on"))
    run(plain)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(adapted.values(), plain.values(), strict=True))
    assert "model.layers.1 cannot be compiled" in result.notes[0]
    strict = broken()
    before = strict.values()
    with pytest.raises(TrainingError, match=r"model\.layers\.1 cannot be compiled as one graph"):
        run(strict, replace(SETUP, compile="on", strict=True))
    assert same(strict.values(), before)


def test_the_host_reads_what_is_computed_once_a_step(monkeypatch):
    reads = []

    def watched(name):
        real = getattr(torch.Tensor, name)

        def read(self, *args, **how):
            reads.append(name) if self.is_floating_point() else None
            return real(self, *args, **how)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero"):
        watched(name)
    per_step = []
    config = replace(SETUP, grad_accum=2, batch_size=3)
    run(llama(), config, on_step=lambda _: per_step.append(list(reads)) or reads.clear())
    assert per_step == [["tolist"]] * config.max_steps  # which gradients are there, in the first two steps, are whole numbers


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw", "paged_adamw8bit"])
def test_optimizers_of_bitsandbytes_train_or_are_refused(name):
    pytest.importorskip("bitsandbytes")
    adapted, plain = llama("up_proj"), llama("up_proj")
    config = replace(SETUP, learning_rate=1e-3)
    if name.startswith("paged"):
        with pytest.raises(TrainingError, match=f"optimizer {name} moves its states between a GPU and the host"):
            run(adapted, replace(config, optimizer=name))
        return
    start = plain.values()
    run(adapted, replace(config, optimizer=name))
    run(plain, config)
    moved = [x - s for x, s in zip(adapted.values(), start, strict=True)]
    expected = [y - s for y, s in zip(plain.values(), start, strict=True)]
    assert all((x - y).norm() < 0.1 * y.norm() for x, y in zip(moved, expected, strict=True))
    assert not same(adapted.values(), plain.values())


def test_an_optimizer_that_cannot_be_is_refused_in_a_sentence(monkeypatch):
    with pytest.raises(TrainingError, match="optimizer is 'sgd'; it must be one of adamw, adamw8bit"):
        TrainConfig(optimizer="sgd")
    wide = llama()
    wide.model.double()
    with pytest.raises(TrainingError, match=r"trains float32 tensors, and these are torch\.float64"):
        run(wide, replace(SETUP, optimizer="adamw8bit"))
    pytest.importorskip("bitsandbytes")
    import bitsandbytes

    def step(self):
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", step)
    with pytest.raises(TrainingError, match=r"optimizer adamw8bit cannot run on cpu with this bitsandbytes \(no kernel for this device\)"):
        run(llama(), replace(SETUP, optimizer="adamw8bit"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TrainingError, match=r"needs bitsandbytes: pip install 'graft-peft\[nf4\]'"):
        run(llama(), replace(SETUP, optimizer="adamw8bit"))


def test_low_rank_branches_run_fused_while_they_are_trained(tiny_tokenizer):
    model = tiny("llama").float()
    host = adapt(model, SETTINGS["lora"])
    before = {name: value.clone() for name, value in model.state_dict().items() if ".graft." not in name}
    seen = []
    result = train(
        host, tiny_tokenizer, examples(), None, replace(SETUP, max_steps=2), progress=False, on_step=lambda _: seen.append(host.fused)
    )
    assert None not in seen
    assert host.fused is None
    assert (result.fused, result.apart) == ({"stacked": 14}, "")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if ".graft." not in name)


@pytest.mark.parametrize("fuse", [True, False])
def test_branches_run_by_themselves_if_asked(tiny_tokenizer, fuse):
    host, seen = adapt(tiny("llama"), SETTINGS["lora"]), []
    config = replace(SETUP, max_steps=2, fuse=fuse)
    result = train(host, tiny_tokenizer, examples(), None, config, progress=False, on_step=lambda _: seen.append(host.fused is not None))
    assert seen == [fuse] * 2
    assert result.fused == ({"stacked": 14} if fuse else {})


def test_a_branch_that_cannot_be_fused_is_a_note_or_an_error_if_strict(tiny_tokenizer):
    host = adapt(tiny("llama"), SETTINGS["lora_embedding"])
    result = train(host, tiny_tokenizer, examples(), None, replace(SETUP, max_steps=2), progress=False)
    assert result.notes == [result.apart]
    assert result.apart.startswith("model.embed_tokens does not run fused: it is no plain linear map")
    with pytest.raises(GraftError, match=r"model\.embed_tokens does not run fused"):
        train(host, tiny_tokenizer, examples(), None, replace(SETUP, strict=True), progress=False)
    assert host.fused is None
