"""Train the tensors of one adapted model.

The loss of an optimizer step is exact whatever the accumulation: the sum of the negative log-likelihoods of all supervised
tokens of the step, divided by their number, so that `grad_accum` batches give the gradient of one large batch. Logits are
computed at supervised positions only. The base stays in the dtype it was loaded in and the trained tensors are its owner's
(fp32 masters), so there is no autocast and no loss scaling.

Guards (graft.train.guards) stop a run before the optimizer's step: a loss or a gradient that is not finite, a batch without a
supervised token, a module that no gradient reaches in the first two steps. Ctrl-C waits for the end of the step.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from graft.data import Example, epochs
from graft.errors import TrainingError
from graft.kernels.cards import on
from graft.kernels.optimizers import optimizer
from graft.model.checkpointing import checkpointed
from graft.model.fused import Ran
from graft.model.recorded import Recorded, Recorder, why_not
from graft.model.regional import pays, regional
from graft.model.supervised import token_losses
from graft.train import guards
from graft.train.flat import flat
from graft.train.gradient import gradient
from graft.train.meter import PeakMemory
from graft.train.progress import Steps
from graft.train.recipe import Step, TrainConfig, TrainResult
from graft.train.step import Run, batch_of, summed, take
from graft.train.tracker import tracked
from graft.train.unfinished import opened

__all__ = ["Step", "TrainConfig", "TrainResult", "Trainable", "token_losses", "train"]

WARM_STEPS = 2  # left out of the timing: allocators, kernels and caches settle
CURVE_POINTS = 100


class Trainable(Protocol):
    """What training asks of an adapted model."""

    @property
    def model(self) -> nn.Module:
        """The transformers model, adapters attached."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors."""
        ...


def train(
    adapted: Trainable,
    tokenizer: Any,
    examples: Sequence[Example],
    validation: Sequence[Example] | None,
    config: TrainConfig,
    *,
    on_step: Callable[[Step], None] | None = None,
    progress: bool = True,
    label: str = "training",
    state: str | Path | None = None,
    about: Mapping[str, str] = MappingProxyType({}),
) -> TrainResult:
    """Train `adapted.parameters()` in place on tokenised examples and say how it went.

    With `patience`, the run ends after so many evaluations without a better validation loss, and the tensors of the best
    evaluation are put back whether it ended early or not. Order of rows and dropout follow `config.seed`; the global random
    state is left as it was. Raises TrainingError (see the module) and KeyboardInterrupt, both between two whole steps.

    `state` is a file from which the same run goes on, to the same tensors, written every `config.save_every` steps and at Ctrl-C
    (graft.train.unfinished); the caller deletes it. `about` tells apart what rows and config do not.
    """
    run = _start(adapted, tokenizer, examples, validation or (), config, kept=state is not None)
    compiles = config.compile == "on" or (config.compile == "auto" and pays(run.model, _tokens(examples, config)))
    with ExitStack() as stack:
        stack.enter_context(on(first := next(run.model.parameters())))
        peak = stack.enter_context(PeakMemory(first.device))
        stack.enter_context(_seeded(config.seed, first.device))
        stack.enter_context(_training(run))
        run.stepped = stack.enter_context(flat(list(run.named.values()), config.optimizer == "adamw"))
        run.optimizer = run.accelerator.prepare(optimizer(config.optimizer, run.stepped, config.learning_rate, config.weight_decay))
        run.ran = stack.enter_context(_fused(adapted, config))
        run.regional = stack.enter_context(regional(run.model, compiles, strict=config.strict, ahead=getattr(adapted, "fused", None)))
        run.recorder = stack.enter_context(_recorded(run, getattr(adapted, "changed", lambda: None)))
        stack.enter_context(run.interrupt)
        run.unfinished = opened(state, run, examples, about)
        shown = stack.enter_context(Steps(config.max_steps, label, progress, before=run.before))
        stopped = _steps(run, shown, on_step)
        best_step = _restore_best(run)
    return _result(run, peak.bytes, stopped, best_step)


def _start(
    adapted: Trainable, tokenizer: Any, examples: Sequence[Example], validation: Sequence[Example], config: TrainConfig, *, kept: bool
) -> Run:
    wanted = {id(tensor) for tensor in adapted.parameters() if tensor.requires_grad}
    named = {name: tensor for name, tensor in adapted.model.named_parameters() if id(tensor) in wanted}
    if not named:
        raise TrainingError("no tensor of the model is trainable: the method trains nothing here, or it is not attached.")
    if not examples:
        raise TrainingError("there is no training example.")
    if config.save_every and not kept:
        raise TrainingError("save_every needs a file to save to: train(..., state=FILE).")
    if kept and config.optimizer.startswith("paged"):
        raise TrainingError(f"the state of {config.optimizer} cannot be kept: choose adamw or adamw8bit, or train without save_every.")
    if config.eval_every and not validation:
        raise TrainingError("eval_every is set but there are no validation examples.")
    accelerator = tracked(config)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = epochs(examples, config.batch_size * config.grad_accum, config.seed)
    longest = max(len(example.ids) for example in (*examples, *validation))
    return Run(adapted.model, named, config, accelerator, rows, validation, pad or 0, longest)


def _tokens(examples: Sequence[Example], config: TrainConfig) -> int:
    """About how many tokens a run reads."""
    rows = config.max_steps * config.batch_size * config.grad_accum
    return rows * sum(len(example.ids) for example in examples) // len(examples)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout follows the seed, and the caller's random state is not touched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _training(run: Run) -> Iterator[None]:
    """Training mode and checkpointing inside the block; after it the model's own mode, no gradients, trackers closed."""
    was = run.model.training
    run.model.train()
    try:
        with checkpointed(run.model, run.config.checkpointing):
            yield
    finally:
        run.model.train(was)
        for tensor in run.named.values():
            tensor.grad = None
        if run.config.tracker != "none":
            run.accelerator.end_training()


@contextmanager
def _fused(adapted: Any, config: TrainConfig) -> Iterator[list[Ran]]:
    """Low-rank branches fused with their products inside the block, where what is trained offers it and is not fused already."""
    if not config.fuse or getattr(adapted, "fused", adapted) is not None:
        yield []
        return
    try:
        yield adapted.fuse(strict=config.strict)
    finally:
        adapted.unfuse()


@contextmanager
def _recorded(run: Run, changed: Callable[[], None]) -> Iterator[Recorder | None]:
    """Steps recorded as CUDA graphs inside the block, where that is wanted and can be; where it cannot and was asked for, that is said."""
    config, reason = run.config, why_not(run.model)
    if config.cuda_graphs == "off" or reason:
        if reason and config.cuda_graphs == "on":
            if config.strict:
                raise TrainingError(f"{reason}: train with cuda_graphs off, or without strict")
            run.recorded = Recorded(0, 0, 0.0, reason)
        yield None
        return
    work, trained = partial(gradient, run.model), list(run.named.values())
    recorder = Recorder(work, trained, how=config.cuda_graphs, strict=config.strict, after=changed)
    try:
        yield recorder
    finally:
        run.recorded = recorder.report
        recorder.forget()


def _steps(run: Run, shown: Steps, on_step: Callable[[Step], None] | None) -> str:
    """All steps; says why it ended."""
    shown.note(f"{shown.label} goes on after step {run.done} of {run.config.max_steps}" if run.done else "")
    if run.owed and (ended := _after(run, run.done, run.owed, shown, on_step)):
        return ended
    for step in range(run.done + 1, run.config.max_steps + 1) if not run.stopped else ():
        if run.interrupt.asked and run.unfinished and step > 1:
            run.unfinished.keep(run, step - 1)
        run.interrupt.check(f"training stopped before step {step}")
        taken = take(run, step, next(run.rows))
        if ended := _after(run, step, taken, shown, on_step):
            return ended
        if run.unfinished:
            run.unfinished.due(run, step)
    return run.stopped


def _after(run: Run, step: int, taken: tuple[float, float, float], shown: Steps, on_step: Callable[[Step], None] | None) -> str:
    """What follows a step, its evaluation above all; says why training ends with it, if it does."""
    config, last = run.config, step == run.config.max_steps
    due = bool(run.validation) and (last or (config.eval_every > 0 and step % config.eval_every == 0))
    try:
        validation_loss = _evaluate(run, step) if due else None
    except KeyboardInterrupt:
        if run.unfinished:
            run.unfinished.keep(run, step, owed=taken)
        raise
    if validation_loss is not None:
        _keep_best(run, step, validation_loss)
    if due or last or step % max(1, config.max_steps // CURVE_POINTS) == 0:
        _point(run, step, validation_loss)
    shown.update(step, taken[0], run.tokens)
    if on_step is not None:
        on_step(Step(step, *taken, run.tokens, validation_loss))
    early = run.best and config.patience and step - run.best[1] >= config.patience * config.eval_every and not last
    ended = "early" if early else "max_steps" if last else ""
    if ended:
        if run.unfinished:
            run.unfinished.keep(run, step, stopped=ended)
        run.interrupt.check(f"training stopped after step {step}")  # else nobody would hear of one in the last step
    return ended


@torch.no_grad()
def _evaluate(run: Run, step: int) -> float:
    """Mean loss a supervised token over the validation examples."""
    seen, size = [], run.config.batch_size
    run.model.eval()
    for i in range(0, len(run.validation), size):
        run.interrupt.check(f"training stopped after step {step}")
        part = run.validation[i : i + size]
        seen.append(guards.Seen([example.row for example in part], *token_losses(run.model, batch_of(run, part))))
    run.model.train()
    total = float(summed(seen))
    guards.finite_losses(total, seen, f"validation after step {step}")
    return total / max(sum(len(part.losses) for part in seen), 1)


def _keep_best(run: Run, step: int, loss: float) -> None:
    """With early stopping on, keep a copy of the tensors if they are the best so far."""
    if run.config.patience and (run.best is None or loss < run.best[0]):
        run.best = loss, step, {name: tensor.detach().clone() for name, tensor in run.named.items()}


def _point(run: Run, step: int, validation_loss: float | None) -> None:
    """One point of the curve (the mean training loss since the last one), also sent to the tracker."""
    loss = sum(total for total, _ in run.since_point) / sum(count for _, count in run.since_point)
    run.since_point.clear()
    run.curve.append({"step": step, "tokens": run.tokens, "train_loss": loss, "validation_loss": validation_loss})
    if run.config.tracker != "none":
        run.accelerator.log({name: value for name, value in run.curve[-1].items() if value is not None}, step=step)


@torch.no_grad()
def _restore_best(run: Run) -> int | None:
    """Put back the tensors of the best evaluation, if any were kept; returns its step."""
    if run.best is None:
        return None
    for name, tensor in run.best[2].items():
        run.named[name].copy_(tensor)
    return run.best[1]


def _result(run: Run, peak: int, stopped: str, best_step: int | None) -> TrainResult:
    timed = run.times[WARM_STEPS:] or run.times
    spent = sum(second for second, _ in timed)
    losses = [point["validation_loss"] for point in run.curve if point["validation_loss"] is not None]
    return TrainResult(
        steps=len(run.times),
        tokens=run.tokens,
        seconds=run.seconds,
        seconds_per_step=statistics.median(second for second, _ in timed),
        tokens_per_second=sum(tokens for _, tokens in timed) / max(spent, 1e-9),
        curve=run.curve,
        peak_memory_bytes=peak,
        stopped=stopped,
        validation_loss=run.best[0] if run.best else (losses[-1] if losses else None),
        best_step=best_step,
        compiled=run.regional.report if run.regional else None,
        recorded=run.recorded,
        fused=dict(Counter(ran.how for ran in run.ran)),
        apart=next((ran.note for ran in run.ran if ran.note), ""),
    )
