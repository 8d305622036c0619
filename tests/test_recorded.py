"""Recorded steps: inputs that are copied in, gradients that stay where they are, what is forgotten, what cannot be recorded.

On a CPU a recording is work on the copies of its inputs, done again; on a GPU the same is asked of CUDA graphs.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils

from graft import LoRA, Prefix, Prompt, adapt
from graft.errors import TrainingError
from graft.model import capture, recorded
from graft.model.recorded import AHEAD, CROWDED, FIRST, Recorder
from graft.model.waits import HOST, Watch
from graft.train import loop, step
from graft.train.gradient import SHARES, gradient, inputs_of, wide
from test_train import SETUP, examples, llama, run, same

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
LONG = replace(SETUP, max_steps=12, grad_accum=2, schedule="constant")


class Again:
    """What a recording gives, without a GPU: it reads its own copies of the inputs, and nothing is done while it is made."""

    def __init__(self, work, inputs, pool, stream):
        self.work, self.pool = work, pool or object()
        self.inputs = {name: value.clone() for name, value in inputs.items()}

    def play(self, inputs):
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        return self.work(self.inputs).clone()


@pytest.fixture
def recording(monkeypatch):
    """Recordings on a CPU."""
    monkeypatch.setattr(recorded, "Graph", Again)
    monkeypatch.setattr(recorded, "watched", lambda: nullcontext(Watch(host=1.0, card=1.0)))
    monkeypatch.setattr(loop, "why_not", lambda model: "")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 << 30, 80 << 30))


def pair():
    """A recorder of Σ w x, and w."""
    w = torch.nn.Parameter(torch.ones(3))

    def work(inputs):
        out = (w * inputs["x"]).sum()
        out.backward()
        return out.detach()

    return Recorder(work, [w]), w


@pytest.mark.parametrize("length", [1, 64])
def test_recorded_steps_train_to_the_same_tensors(recording, monkeypatch, length):
    monkeypatch.setattr(step, "LENGTH", length)
    as_it_comes, played = llama(), llama()
    expected = run(as_it_comes, replace(LONG, cuda_graphs="off"), validation=examples(3, seed=1))
    result = run(played, replace(LONG, strict=True), validation=examples(3, seed=1))
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(played.values(), as_it_comes.values(), strict=True))
    assert result.validation_loss == pytest.approx(expected.validation_loss, rel=1e-6)
    assert [point["train_loss"] for point in result.curve] == pytest.approx([point["train_loss"] for point in expected.curve], rel=1e-6)
    assert expected.recorded is None
    assert result.recorded.recordings > 0
    assert result.recorded.times > (2 if length == 1 else 12)
    assert all(value.grad is None for value in played.parameters())


def test_the_first_times_are_worked_on_as_they_come_and_then_played(recording):
    recorder, w = pair()
    for count in range(1, 5):
        assert float(recorder({"x": torch.full((3,), float(count))})) == 3 * count
        assert recorder.report.times == max(0, count - FIRST)
    assert w.grad.tolist() == [10.0] * 3
    assert float(recorder({"x": torch.ones(1)})) == 3
    assert recorder.report.recordings == 1


def test_results_of_two_plays_are_tensors_of_their_own(recording):
    recorder, _ = pair()
    outs = [recorder({"x": torch.full((3,), float(count))}) for count in range(5)]
    assert [float(out) for out in outs] == [0.0, 3.0, 6.0, 9.0, 12.0]


def test_gradients_are_set_to_zero_where_recordings_add_to_them(recording):
    recorder, w = pair()
    x = {"x": torch.ones(3)}
    recorder(x)
    recorder.clear()
    assert w.grad is None
    recorder(x)
    kept = w.grad
    recorder.clear()
    assert w.grad is kept
    assert kept.tolist() == [0.0] * 3


def test_gradients_elsewhere_make_new_recordings(recording):
    recorder, w = pair()
    x = {"x": torch.ones(3)}
    for _ in range(FIRST + 1):
        recorder(x)
    assert recorder.report.recordings == 1
    w.grad = None
    recorder(x)
    assert recorder.report.recordings == 0
    assert w.grad.tolist() == [1.0] * 3


def test_no_more_than_so_many_recordings(recording, monkeypatch):
    monkeypatch.setattr(recorded, "MOST", 2)
    recorder, _ = pair()
    for _ in range(FIRST):
        for size in (1, 3):
            for kind in (torch.float32, torch.float64):
                recorder({"x": torch.ones(size, dtype=kind)})
    assert recorder.report.recordings == 2


def test_auto_records_only_where_there_is_room(recording, monkeypatch):
    recorder, _ = pair()
    recorder.how = "auto"
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2 << 30)
    for free, fits in ((20 << 30, False), (21 << 30, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 << 30))
        assert recorder.room() is fits


@pytest.mark.parametrize(
    ("how", "seconds", "free", "recordings", "left"),
    [
        ("auto", 1.01 * HOST, 80, 1, {}),
        ("auto", 0.99 * HOST, 80, 0, {AHEAD: 1}),
        ("auto", 1.01 * HOST, 0, 0, {CROWDED: 1}),
        ("on", 0.0, 0, 1, {}),
    ],
)
def test_auto_records_only_where_the_host_matters_and_says_why_not(recording, monkeypatch, how, seconds, free, recordings, left):
    looks = []
    monkeypatch.setattr(recorded, "watched", lambda: nullcontext(looks.append(1) or Watch(host=seconds, card=1.0)))
    for name, value in {
        "empty_cache": None,
        "max_memory_allocated": 2,
        "memory_allocated": 1,
        "mem_get_info": (free << 30, 80 << 30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    recorder, w = pair()
    recorder.how = how
    for _ in range(5):
        recorder({"x": torch.ones(3)})
    assert w.grad.tolist() == [5.0] * 3
    assert recorder.report.recordings == recordings
    assert recorder.report.left == left
    assert len(looks) == 1, "decided once for a shape"
    assert recorder.report.failed == ""


def test_work_that_reads_numbers_back_is_not_tried(recording, monkeypatch):
    monkeypatch.setattr(recorded, "watched", lambda: nullcontext(Watch(host=1.0, card=1.0, reads="mixture.py:7")))
    monkeypatch.setattr(recorded, "Graph", lambda *given: pytest.fail("a recording was tried"))
    result = run(llama(), replace(LONG, cuda_graphs="on"))
    assert result.notes == ["steps are not recorded as CUDA graphs: the work reads numbers back from the card (mixture.py:7)"]
    with pytest.raises(TrainingError, match=r"reads numbers back from the card \(mixture.py:7\). Train with cuda_graphs off"):
        run(llama(), replace(LONG, strict=True))


def test_what_is_looked_at_makes_the_masks_that_its_recording_would(recording, monkeypatch):
    asked = []
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *given: "as it comes")
    recorder = Recorder(lambda inputs: asked.append(masking_utils.find_packed_sequence_indices()) or torch.zeros(()), [])
    for _ in range(FIRST):
        recorder({"x": torch.ones(1)})
    assert asked == ["as it comes"] * (FIRST - 1) + [None]


def test_before_larger_inputs_without_room_auto_gives_recordings_back_and_makes_them_again(recording, monkeypatch):
    recorder, w = pair()
    small, large = {"x": torch.ones(1)}, {"x": torch.ones(3)}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2 << 30)
    for how, free, kept in (("on", 30, 1), ("auto", 31, 1), ("auto", 30, 0)):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 << 30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free << 30, 80 << 30))
        recorder.how = how
        recorder.largest = 0
        recorder.forget()
        for _ in range(FIRST):
            recorder(small)
        assert recorder.report.recordings == 1
        recorder(large)
        assert recorder.report.recordings == kept
    recorder(small)
    assert recorder.report.recordings == 1
    recorder(large)
    assert recorder.report.recordings == 2
    before = w.grad.clone()
    recorder(large)
    assert (w.grad - before).tolist() == [1.0] * 3


@pytest.fixture
def refused(recording, monkeypatch):
    """Nothing can be recorded."""

    class Refused(Again):
        def __init__(self, work, inputs, pool, stream):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded, "Graph", Refused)


def test_what_cannot_be_recorded_goes_on_as_it_comes_and_says_so(refused):
    as_it_comes, other = llama(), llama()
    run(as_it_comes, replace(LONG, cuda_graphs="off"))
    result = run(other, LONG)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(other.values(), as_it_comes.values(), strict=True))
    assert result.recorded.recordings == 0
    assert "not permitted" in result.recorded.failed
    assert result.notes == [result.recorded.failed]


def test_strict_refuses_what_cannot_be_recorded(refused):
    with pytest.raises(TrainingError, match=r"not recorded as CUDA graphs.*cuda_graphs off"):
        run(llama(), replace(LONG, strict=True))


def test_where_no_step_can_be_recorded_that_is_said_if_it_was_asked_for():
    assert run(llama(), replace(SETUP, max_steps=1)).notes == []
    if not torch.cuda.is_available():
        result = run(llama(), replace(SETUP, max_steps=1, cuda_graphs="on"))
        assert "the model is on cpu, and not on one GPU" in result.notes[0]
        with pytest.raises(TrainingError, match="not on one GPU: train with cuda_graphs off"):
            run(llama(), replace(SETUP, max_steps=1, cuda_graphs="on", strict=True))


def test_what_is_served_after_a_played_step_is_new(recording):
    host = adapt(llama("nothing").model, LoRA(r=4))
    with torch.no_grad():
        for value in host.parameters():
            value.normal_()
    host.fuse(layout="pitched")
    ids = torch.arange(2, 9)[None]
    with torch.no_grad():
        before = host.model(ids).logits
        for value in host.parameters():
            value.data.mul_(2)  # as a fused optimizer does: no version tells
        stale = host.model(ids).logits
        host.changed()
        after = host.model(ids).logits
    assert torch.equal(before, stale)
    assert not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize(
    "method", [LoRA(r=4, dropout=0.0), Prefix(n=3), Prompt(n=3, init_embeds="random")], ids=["lora", "prefix", "prompt"]
)
def test_places_beyond_a_batch_change_no_gradient(method):
    host = adapt(llama("nothing").model, method)
    with torch.no_grad():
        for value in host.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    batch = step.collate(examples(4), 0, multiple=16)
    del batch["attention_mask"]
    found = []
    for padded in (False, True):
        inputs, rows = inputs_of(batch, 0.25, torch.float32, padded=padded)
        losses = gradient(host.model, inputs)
        found.append((len(losses), losses[: len(rows)], [value.grad.clone() for value in host.parameters()]))
        for value in host.parameters():
            value.grad = None
    (exact, losses, gradients), (more, same_losses, same_gradients) = found
    assert exact < more <= batch["labels"].numel()
    torch.testing.assert_close(losses, same_losses)
    for x, y in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(x, y)


def test_few_numbers_of_places_for_one_shape():
    for positions in (7, 64, 4096):
        found = {wide(count, positions) for count in range(1, positions + 1)}
        assert len(found) <= SHARES
        assert max(found) == positions
        assert all(wide(count, positions) >= count for count in range(1, positions + 1))


def test_a_recorded_forward_makes_the_masks_that_it_makes_otherwise(monkeypatch):
    config = LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    model, made = LlamaForCausalLM(config), []
    hook = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: made.append(kwargs["attention_mask"]), with_kwargs=True
    )
    before = masking_utils.is_tracing
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *given: True)  # as it is while a stream is captured
    model(torch.ones(2, 8, dtype=torch.long), use_cache=False)
    with capture.unmasked():
        model(torch.ones(2, 8, dtype=torch.long), use_cache=False)
    monkeypatch.undo()
    model(torch.ones(2, 8, dtype=torch.long), use_cache=False)
    hook.remove()
    assert made[0] is not None
    assert made[1] is None
    assert made[2] is None
    assert masking_utils.is_tracing is before


@CUDA
@pytest.mark.parametrize("method", [LoRA(r=4), LoRA(r=4, dropout=0.2), Prefix(n=3), Prompt(n=3, init_embeds="random")])
def test_cuda_graphs_train_to_the_same_tensors(method, monkeypatch):
    monkeypatch.setattr(step, "LENGTH", 1)
    found = []
    for how in ("off", "on"):
        model = copy.deepcopy(llama("nothing").model).cuda()
        host = adapt(model, method)
        result = run(host, replace(LONG, cuda_graphs=how, strict=True))
        found.append([value.detach().clone() for value in host.parameters()])
    assert result.recorded.times > 2
    assert same(*found) or all(torch.allclose(x, y, atol=1e-6) for x, y in zip(*found, strict=True))
