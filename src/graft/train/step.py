"""One optimizer step: batches, losses, gradients, the guards, the update.

The host waits for the device once a step: what the guards and the report need (the sum of all losses, the norm of all gradients) is read
together, before the optimizer's step. Labels stay on the CPU, where they are counted, and all else is copied from pinned memory.

Rows are padded on the right, to a multiple of `LENGTH` where the model is compiled or steps are recorded, so that a few graphs serve all
lengths. No position of a causal model reads what comes after it, so it gets no mask: the losses are the same, and attention keeps its fast
causal kernel.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from graft.data import Example, collate
from graft.errors import TrainingError
from graft.model.families import is_causal
from graft.model.fused import Ran
from graft.model.recorded import Recorded, Recorder
from graft.model.regional import Regional
from graft.model.supervised import IGNORED, moved
from graft.train import guards
from graft.train.gradient import gradient, inputs_of
from graft.train.interrupt import Interrupt
from graft.train.recipe import TrainConfig, factor

WATCHED_STEPS = 2  # after so many steps every trained module must have had a gradient
LENGTH = 64  # tokens: batches of compiled models and of recorded steps are as long as a multiple of it


@dataclass
class Run:
    """The state of one run."""

    model: nn.Module
    named: dict[str, nn.Parameter]
    config: TrainConfig
    accelerator: Any
    rows: Iterator[list[Example]]
    validation: Sequence[Example]
    pad_id: int
    longest: int  # tokens of any row
    stepped: list[nn.Parameter] = field(default_factory=list)  # what the optimizer steps: the tensors, or all of them as one
    optimizer: Any = None
    ran: Sequence[Ran] = ()  # how low-rank branches run
    regional: Regional | None = None
    recorder: Recorder | None = None
    recorded: Recorded | None = None  # what recording came to in the end
    interrupt: Interrupt = field(default_factory=Interrupt)
    tokens: int = 0
    times: list[tuple[float, int]] = field(default_factory=list)  # seconds and tokens of each step
    since_point: list[tuple[float, int]] = field(default_factory=list)  # sum of losses and their number, since the last point
    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    best: tuple[float, int, dict[str, torch.Tensor]] | None = None
    unfinished: Any = None  # the file of its state (graft.train.unfinished)
    done: int = 0  # steps, before this process
    owed: tuple[float, float, float] | None = None  # loss, norm and rate of the last of them, whose evaluation was cut off
    stopped: str = ""  # why training had ended, where it had
    before: float = 0.0  # seconds that they took in all
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return self.before + time.perf_counter() - self.started

    @property
    def preparing(self) -> float:
        """Seconds that compiling and recording have taken so far."""
        return (self.regional.seconds if self.regional else 0.0) + (self.recorder.report.seconds if self.recorder else 0.0)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype


def take(run: Run, step: int, rows: list[Example]) -> tuple[float, float, float]:
    """One optimizer step over `rows`: mean loss a token, gradient norm before clipping, learning rate."""
    started, prepared = time.perf_counter(), run.preparing
    when, size = f"step {step}", run.config.batch_size
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    batches = [batch_of(run, part) for part in parts]
    supervised = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    if not supervised:
        raise TrainingError(f"{when}: no token to learn in rows {guards.listed(example.row.where for example in rows)}.")
    clear(run)
    seen = [learnt(run, part, batch, supervised) for part, batch in zip(parts, batches, strict=True)]
    total, norm = checked(run, step, seen)
    rate = run.config.learning_rate * factor(run.config, step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    tokens = sum(len(example.ids) for example in rows)
    run.tokens += tokens
    run.since_point.append((total, supervised))
    run.times.append((time.perf_counter() - started - (run.preparing - prepared), tokens))
    return total / supervised, norm, rate


def clear(run: Run) -> None:
    """No gradients: zeros where they have to stay where they are."""
    whole = run.stepped[0].grad if len(run.stepped) == 1 and len(run.named) > 1 else None
    if whole is not None:
        whole.zero_()
    elif run.recorder:
        run.recorder.clear()
    else:
        run.optimizer.zero_grad()


def learnt(run: Run, examples: Sequence[Example], batch: dict[str, torch.Tensor], supervised: int) -> guards.Seen:
    """The losses of one batch, and their part of the step's gradients added to the parameters'."""
    inputs, row_of = inputs_of(batch, 1 / supervised, run.dtype, padded=run.recorder is not None)
    losses = run.recorder(inputs) if run.recorder else gradient(run.model, inputs)
    return guards.Seen([example.row for example in examples], losses[: len(row_of)], row_of)


def batch_of(run: Run, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A padded batch on the model's device, its labels on the CPU."""
    batch = collate(examples, run.pad_id, multiple=LENGTH if run.regional or run.recorder else 1, most=run.longest)
    if is_causal(run.model):
        del batch["attention_mask"]
    device = next(run.model.parameters()).device
    return {name: value if name == "labels" else moved(value, device) for name, value in batch.items()}


def checked(run: Run, step: int, seen: Sequence[guards.Seen]) -> tuple[float, float]:
    """The sum of all losses and the norm over all gradients, both guarded; the gradients are clipped to `config.clip`."""
    gradients = [tensor.grad for tensor in run.stepped if tensor.grad is not None]
    norm = get_total_norm(gradients) if gradients else torch.zeros(())
    total, length = torch.stack([summed(seen), norm.double()]).tolist()  # the one time that the host waits
    guards.finite_losses(total, seen, f"step {step}")
    guards.finite_gradients(length, run.named, [row for part in seen for row in part.rows], f"step {step}")
    if step <= WATCHED_STEPS:
        run.touched |= guards.with_gradient(run.named)
    if step == min(WATCHED_STEPS, run.config.max_steps):
        guards.reached(run.named, run.touched, step)
    if run.config.clip:
        clip_grads_with_norm_(run.stepped, run.config.clip, norm)
    return total, length


def summed(seen: Sequence[guards.Seen]) -> torch.Tensor:
    """The sum of all losses, float64, where they are."""
    return torch.stack([part.losses.sum(dtype=torch.float64) for part in seen]).sum()
