"""Train the tensors of one adapted model.

The loss of an optimizer step is exact whatever the accumulation: the sum of the negative log-likelihoods of all supervised
tokens of the step, divided by their number, so that `grad_accum` batches give the gradient of one large batch. Logits are
computed at supervised positions only. The base stays in the dtype it was loaded in and the trained tensors are its owner's
(fp32 masters), so there is no autocast and no loss scaling.

Guards (graft.train.guards) stop a run before the optimizer's step: a loss or a gradient that is not finite, a batch without a
supervised token, a module that no gradient reaches in the first two steps. Ctrl-C waits for the end of the step.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from graft.data import Example, collate, epochs
from graft.errors import TrainingError
from graft.model.checkpointing import checkpointed
from graft.model.supervised import token_losses
from graft.train import guards
from graft.train.interrupt import Interrupt
from graft.train.meter import PeakMemory
from graft.train.progress import Steps
from graft.train.recipe import Step, TrainConfig, TrainResult, factor

__all__ = ["Step", "TrainConfig", "TrainResult", "Trainable", "token_losses", "train"]

WATCHED_STEPS = 2  # after so many steps every trained module must have had a gradient
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


@dataclass
class _Run:
    """The state of one run."""

    model: nn.Module
    named: dict[str, nn.Parameter]
    config: TrainConfig
    accelerator: Any
    optimizer: Any
    rows: Iterator[list[Example]]
    validation: Sequence[Example]
    pad_id: int
    interrupt: Interrupt = field(default_factory=Interrupt)
    tokens: int = 0
    times: list[tuple[float, int]] = field(default_factory=list)  # seconds and tokens of each step
    since_point: list[tuple[float, int]] = field(default_factory=list)  # sum of losses and their number, since the last point
    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    best: tuple[float, int, dict[str, torch.Tensor]] | None = None


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
) -> TrainResult:
    """Train `adapted.parameters()` in place on tokenised examples and say how it went.

    With `patience`, the run ends after so many evaluations without a better validation loss, and the tensors of the best
    evaluation are put back whether it ended early or not. Order of rows and dropout follow `config.seed`; the global random
    state is left as it was. Raises TrainingError (see the module) and KeyboardInterrupt, both between two whole steps.
    """
    run = _start(adapted, tokenizer, examples, validation or (), config)
    started = time.perf_counter()
    device = next(run.model.parameters()).device
    with ExitStack() as stack:
        peak = stack.enter_context(PeakMemory(device))
        stack.enter_context(_seeded(config.seed, device))
        stack.enter_context(_training(run))
        stack.enter_context(run.interrupt)
        shown = stack.enter_context(Steps(config.max_steps, label, progress))
        stopped = _steps(run, shown, on_step)
        best_step = _restore_best(run)
    return _result(run, time.perf_counter() - started, peak.bytes, stopped, best_step)


def _start(adapted: Trainable, tokenizer: Any, examples: Sequence[Example], validation: Sequence[Example], config: TrainConfig) -> _Run:
    wanted = {id(tensor) for tensor in adapted.parameters() if tensor.requires_grad}
    named = {name: tensor for name, tensor in adapted.model.named_parameters() if id(tensor) in wanted}
    if not named:
        raise TrainingError("no tensor of the model is trainable: the method trains nothing here, or it is not attached.")
    if not examples:
        raise TrainingError("there is no training example.")
    if config.eval_every and not validation:
        raise TrainingError("eval_every is set but there are no validation examples.")
    accelerator = _accelerator(config)
    fused = all(tensor.device.type in ("cpu", "cuda") for tensor in named.values())
    optimizer = torch.optim.AdamW(list(named.values()), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = epochs(examples, config.batch_size * config.grad_accum, config.seed)
    return _Run(adapted.model, named, config, accelerator, accelerator.prepare(optimizer), rows, validation, pad or 0)


def _accelerator(config: TrainConfig) -> Any:
    """One process, the model where the caller put it, and the tracker asked for."""
    log_with = None if config.tracker == "none" else config.tracker
    try:
        accelerator = Accelerator(device_placement=False, mixed_precision="no", log_with=log_with, project_dir=config.tracker_dir)
    except ValueError as error:
        raise TrainingError(f"accelerate refuses tracker {config.tracker!r}: {error}") from error
    if accelerator.num_processes > 1:
        raise TrainingError("training runs in one process; start it without a launcher.")
    if log_with and not accelerator.log_with:
        raise TrainingError(f"tracker {config.tracker!r} is not installed; install its package, or choose --tracker none.")
    if log_with:
        accelerator.init_trackers("graft", config=asdict(config))
    return accelerator


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout follows the seed, and the caller's random state is not touched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _training(run: _Run) -> Iterator[None]:
    """Training mode and checkpointing inside the block; after it the model's own mode, no gradients, trackers closed."""
    was = run.model.training
    run.model.train()
    try:
        with checkpointed(run.model, run.config.checkpointing):
            yield
    finally:
        run.model.train(was)
        run.optimizer.zero_grad()
        if run.config.tracker != "none":
            run.accelerator.end_training()


def _steps(run: _Run, shown: Steps, on_step: Callable[[Step], None] | None) -> str:
    """All steps; says why it ended."""
    config = run.config
    for step in range(1, config.max_steps + 1):
        run.interrupt.check(f"training stopped before step {step}")
        loss, norm, rate = _step(run, step, next(run.rows))
        last = step == config.max_steps
        due = bool(run.validation) and (last or (config.eval_every > 0 and step % config.eval_every == 0))
        validation_loss = _evaluate(run, step) if due else None
        if validation_loss is not None:
            _keep_best(run, step, validation_loss)
        if due or last or step % max(1, config.max_steps // CURVE_POINTS) == 0:
            _point(run, step, validation_loss)
        shown.update(step, loss, run.tokens)
        if on_step is not None:
            on_step(Step(step, loss, norm, rate, run.tokens, validation_loss))
        if run.best and config.patience and step - run.best[1] >= config.patience * config.eval_every and not last:
            return "early"
    return "max_steps"


def _step(run: _Run, step: int, rows: list[Example]) -> tuple[float, float, float]:
    """One optimizer step over `rows`: mean loss a token, gradient norm before clipping, learning rate."""
    started = time.perf_counter()
    when, size = f"step {step}", run.config.batch_size
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    batches = [_batch(run, part) for part in parts]
    supervised = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    if not supervised:
        raise TrainingError(f"{when}: no token to learn in rows {guards.listed(example.row.where for example in rows)}.")
    run.optimizer.zero_grad()
    total = 0.0
    for part, batch in zip(parts, batches, strict=True):
        losses, row_of = token_losses(run.model, batch)
        guards.finite_losses(losses.detach(), row_of, [example.row for example in part], when)
        run.accelerator.backward(losses.sum() / supervised)
        total += float(losses.detach().sum())
    norm = _checked_norm(run, step, rows)
    rate = run.config.learning_rate * factor(run.config, step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    tokens = sum(len(example.ids) for example in rows)
    run.tokens += tokens
    run.since_point.append((total, supervised))
    run.times.append((time.perf_counter() - started, tokens))
    return total / supervised, norm, rate


def _batch(run: _Run, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    device = next(run.model.parameters()).device
    batch: dict[str, torch.Tensor] = collate(examples, run.pad_id)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _checked_norm(run: _Run, step: int, rows: list[Example]) -> float:
    """Norm over all gradients, guarded; the gradients are clipped to `config.clip`."""
    gradients = [tensor.grad for tensor in run.named.values() if tensor.grad is not None]
    norm = get_total_norm(gradients) if gradients else torch.zeros(())
    guards.finite_gradients(norm, run.named, [example.row for example in rows], f"step {step}")
    if step <= WATCHED_STEPS:
        run.touched |= guards.with_gradient(run.named)
    if step == min(WATCHED_STEPS, run.config.max_steps):
        guards.reached(run.named, run.touched, step)
    if run.config.clip:
        clip_grads_with_norm_(run.named.values(), run.config.clip, norm)
    return float(norm)


@torch.no_grad()
def _evaluate(run: _Run, step: int) -> float:
    """Mean loss a supervised token over the validation examples."""
    total, count, size = 0.0, 0, run.config.batch_size
    run.model.eval()
    for i in range(0, len(run.validation), size):
        run.interrupt.check(f"training stopped after step {step}")
        part = run.validation[i : i + size]
        losses, row_of = token_losses(run.model, _batch(run, part))
        guards.finite_losses(losses, row_of, [example.row for example in part], f"validation after step {step}")
        total, count = total + float(losses.sum()), count + len(losses)
    run.model.train()
    return total / max(count, 1)


def _keep_best(run: _Run, step: int, loss: float) -> None:
    """With early stopping on, keep a copy of the tensors if they are the best so far."""
    if run.config.patience and (run.best is None or loss < run.best[0]):
        run.best = loss, step, {name: tensor.detach().clone() for name, tensor in run.named.items()}


def _point(run: _Run, step: int, validation_loss: float | None) -> None:
    """One point of the curve (the mean training loss since the last one), also sent to the tracker."""
    loss = sum(total for total, _ in run.since_point) / sum(count for _, count in run.since_point)
    run.since_point.clear()
    run.curve.append({"step": step, "tokens": run.tokens, "train_loss": loss, "validation_loss": validation_loss})
    if run.config.tracker != "none":
        run.accelerator.log({name: value for name, value in run.curve[-1].items() if value is not None}, step=step)


@torch.no_grad()
def _restore_best(run: _Run) -> int | None:
    """Put back the tensors of the best evaluation, if any were kept; returns its step."""
    if run.best is None:
        return None
    for name, tensor in run.best[2].items():
        run.named[name].copy_(tensor)
    return run.best[1]


def _result(run: _Run, seconds: float, peak: int, stopped: str, best_step: int | None) -> TrainResult:
    timed = run.times[WARM_STEPS:] or run.times
    spent = sum(second for second, _ in timed)
    losses = [point["validation_loss"] for point in run.curve if point["validation_loss"] is not None]
    return TrainResult(
        steps=len(run.times),
        tokens=run.tokens,
        seconds=seconds,
        seconds_per_step=statistics.median(second for second, _ in timed),
        tokens_per_second=sum(tokens for _, tokens in timed) / max(spent, 1e-9),
        curve=run.curve,
        peak_memory_bytes=peak,
        stopped=stopped,
        validation_loss=run.best[0] if run.best else (losses[-1] if losses else None),
        best_step=best_step,
    )
