"""The loss in chunks equals the plain one: values, gradients, odd sizes, and it is what the model itself computes."""

import pytest
import torch
import transformers

import graft
from graft.kernels.loss import chunked, reference, token_losses
from graft.model import supervised
from tiny import ENCODERS, MODELS, inputs, tiny

SIZES = [(1, 8, 16), (7, 5, 33), (64, 16, 50), (13, 3, 1000)]
CAPS = [(1.0, 0.0), (0.25, 0.0), (1.0, 5.0), (2.0, 3.0)]


def problem(rows, width, vocabulary, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    factors = torch.rand(rows, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
    return hidden, weight, labels, factors


def run(made, hidden, weight, labels, factors, scale, softcap):
    hidden = hidden.detach().requires_grad_()
    losses = made.token_losses(hidden, weight, labels, scale, softcap)
    (losses * factors).sum().backward()
    return losses.detach(), hidden.grad


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("scale", "softcap"), CAPS)
def test_chunks_equal_the_reference(sizes, scale, softcap, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 4)
    case = problem(*sizes)
    ours, wanted = run(chunked, *case, scale, softcap), run(reference, *case, scale, softcap)
    torch.testing.assert_close(ours[0], wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[1], wanted[1], rtol=1e-11, atol=1e-12)


def test_in_bfloat16_the_losses_are_float32_and_as_close_as_the_reference():
    case = problem(40, 32, 200, torch.bfloat16)
    exact = run(reference, *(t.double() if t.is_floating_point() else t for t in case), 1.0, 0.0)
    ours, plain = run(chunked, *case, 1.0, 0.0), run(reference, *case, 1.0, 0.0)
    assert ours[0].dtype == torch.float32
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert (mine.double() - truth).norm() <= 1.05 * (theirs.double() - truth).norm() + 1e-6


def test_without_gradients_nothing_is_kept():
    hidden, weight, labels, _ = problem(9, 4, 20)
    with torch.no_grad():
        losses = chunked.token_losses(hidden, weight, labels)
    assert not losses.requires_grad
    assert torch.allclose(losses, reference.token_losses(hidden, weight, labels))


def test_a_trained_head_gets_its_gradient():
    hidden, weight, labels, factors = problem(9, 4, 20)
    weight.requires_grad_()
    (token_losses(hidden, weight, labels) * factors).sum().backward()
    assert weight.grad.abs().sum() > 0


def batch_of(name):
    """Ids with a padded row, labels on some positions only."""
    batch = inputs(name, rows=3, length=9)
    batch["attention_mask"][1, 6:] = 0
    labels = batch["input_ids"].clone()
    labels[:, :4], labels[1, 6:], labels[2, ::2] = -100, -100, -100
    return batch | {"labels": labels}


def by_hand(model, batch):
    """The losses from the model's own logits at every position."""
    labels = batch["labels"]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
    return losses[labels[:, 1:] != -100]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ENCODERS])
@pytest.mark.parametrize("method", [graft.LoRA(r=2), graft.Selective("head"), graft.Prompt(n=3), graft.LoRA(r=2, targets=("head",))])
def test_the_loss_is_the_models_own(name, method, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 5)
    adapted = graft.adapt(tiny(name), method)
    batch, parameters = batch_of(name), adapted.parameters()
    losses, rows = supervised.token_losses(adapted.model, batch)
    wanted = by_hand(adapted.model, batch)
    assert rows.tolist() == sorted(rows.tolist())
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((losses * torch.arange(len(losses))).sum(), parameters)
    theirs = torch.autograd.grad((wanted * torch.arange(len(losses))).sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


CHANGED = [("gemma2", {"final_logit_softcapping": 3.0}), ("granite", {"logits_scaling": 4.0})]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(("kind", "settings"), CHANGED)
def test_what_a_model_does_to_its_logits_is_done_here_too(kind, settings):
    config = transformers.AutoConfig.for_model(kind, **settings, **SMALL, vocab_size=64, head_dim=8)
    model = graft.adapt(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"), graft.LoRA(r=2)).model.eval()
    batch = batch_of("llama")
    torch.testing.assert_close(supervised.token_losses(model, batch)[0], by_hand(model, batch), rtol=1e-5, atol=1e-5)
