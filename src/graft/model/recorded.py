"""Work on a GPU that is the same for inputs of the same shapes, such as a training step's forward and backward, recorded as a CUDA graph.

A step of a small model, or of few tokens, waits for the host, which launches its kernels one by one: LoRA on a model of 1 billion
parameters over 512 tokens took 118 ms on an H100 so, and 8.4 ms where the same kernels were played from a recording. They read and write
the same places in memory each time: the inputs are copied in, gradients are added to tensors that stay, dropout draws on as it would have.

Inputs of new shapes are worked on as they come, twice: what has to be compiled, chosen or allocated once is, and is not recorded. Then the
work is recorded, without being done. All of it runs on a stream of its own: autograd adds to a parameter's gradient on the stream on which
that was first done, as long as anything holds that graph, and a recording may not touch another stream.

Recordings share their memory; together they hold about what one step needs, beside what steps as they come need. So "auto" records only
where it is of use, which is where the host needs more than HOST (graft.model.waits) of the card's time, as seen the second time, and where
the card has room for both, as far as is known; before inputs that are larger than any so far and may not find room it gives the recordings
back, and makes them again once both are known to fit. Loss and gradients are the same bits with and without.

All goes on unrecorded where something cannot be recorded. Work that reads a number back, as a mixture of experts may, is known by that
from the second time and is not tried.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from graft.errors import TrainingError
from graft.model.capture import Graph, beside, unmasked
from graft.model.families import is_causal
from graft.model.foreign import reason
from graft.model.waits import Watch, watched

Inputs = Mapping[str, Tensor]
Work = Callable[[Inputs], Tensor]
FIRST = 2  # times that shapes are worked on as they come
MOST = 32  # recordings: each holds some megabytes of the driver's, and shapes that come often come early
SPARE = 256 << 20  # bytes of a card that "auto" leaves alone
UNRECORDED = "steps are not recorded as CUDA graphs"
AHEAD, CROWDED = "the host is faster than the card", "the card has no room for a recording"


@dataclass(frozen=True)
class Recorded:
    """What recording came to: so many `recordings`, made in so many `seconds`, played so many `times`; `failed` is why there are none.

    `left` counts the shapes that "auto" left as they come, by its reason.
    """

    recordings: int
    times: int
    seconds: float
    failed: str = ""
    left: dict[str, int] = field(default_factory=dict)


class Recording(Protocol):
    """Work on copies of inputs, recorded in the memory of a `pool` that others can share."""

    pool: Any

    def play(self, inputs: Inputs) -> Tensor:
        """Do it for inputs of the same shapes; what it gives is a tensor of its own."""
        ...


class Recorder:
    """`work`, which adds to the gradients of `trained` and gives a tensor that needs no gradient, recorded for each of up to MOST shapes.

    `after` is called whenever a recording was played, since no module's code has run then. Raises TrainingError with `strict` where it
    cannot be recorded.
    """

    def __init__(
        self,
        work: Work,
        trained: Sequence[nn.Parameter],
        *,
        how: str = "on",
        strict: bool = False,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.work, self.trained, self.how, self.strict, self.after = work, list(trained), how, strict, after
        self.seen: Counter[object] = Counter()
        self.recordings: dict[object, Recording] = {}
        self.tried: dict[object, str] = {}  # shapes that were decided about, and why they were not recorded
        self.gradients: list[Tensor | None] = []
        self.pool: Any = None
        self.stream = torch.cuda.Stream() if self.trained and self.trained[0].is_cuda else None  # type: ignore[no-untyped-call]
        self.largest = 0  # numbers of all inputs together
        self.held, self.times, self.seconds, self.failed = 0, 0, 0.0, ""

    @property
    def report(self) -> Recorded:
        """What it came to so far."""
        left = dict(Counter(filter(None, self.tried.values())))
        return Recorded(len(self.recordings), self.times, self.seconds, self.failed, left)

    def __call__(self, inputs: Inputs) -> Tensor:
        """The work's result for these inputs."""
        key = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if self.recordings and any(value.grad is not was for value, was in zip(self.trained, self.gradients, strict=True)):
            self.forget()
        if key in self.recordings:
            self.times += 1
            out = self.recordings[key].play(inputs)
            self.after()
            return out
        size = sum(value.numel() for value in inputs.values())
        if size > self.largest and self.recordings and self.how != "on" and self.crowded(size / self.largest):
            self.give_back()
        self.largest = max(self.largest, size)
        self.seen[key] += 1
        due = self.seen[key] >= FIRST and key not in self.tried and len(self.recordings) < MOST and not self.failed
        with beside(self.stream):
            if not due:
                return self.work(inputs)
            with unmasked(), watched() as seen:
                out = self.work(inputs)
        self.decide(key, inputs, seen)
        return out

    def decide(self, key: object, inputs: Inputs, seen: Watch) -> None:
        """Record the work for inputs of these shapes, unless what was seen of it speaks against that."""
        if seen.reads:
            self.fail(f"the work reads numbers back from the card ({seen.reads})")
        elif self.how != "on" and not seen.pays:
            self.tried[key] = AHEAD
        elif not self.room():
            self.tried[key] = CROWDED
        else:
            self.tried[key] = ""
            self.record(key, inputs)

    def forget(self) -> None:
        """Begin anew: what recordings read or write is elsewhere now."""
        self.give_back()
        self.seen.clear()

    def give_back(self) -> None:
        """Give the recordings' memory back."""
        self.recordings.clear()
        self.tried.clear()
        self.gradients, self.pool, self.held = [], None, 0

    def clear(self) -> None:
        """Set the gradients to zero where they are while recordings add to them; else forget them."""
        found = [value.grad for value in self.trained if value.grad is not None]
        if self.recordings and found:
            torch._foreach_zero_(found)
        else:
            for value in self.trained:
                value.grad = None

    def room(self) -> bool:
        """Whether there is memory for one recording more beside the same work done as it comes."""
        if self.how == "on":
            return True
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] + self.held >= 2 * needed() + SPARE

    def crowded(self, times: float) -> bool:
        """Whether work on inputs so many times as large as the largest so far may find no room beside the recordings."""
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated() - self.held
        return torch.cuda.mem_get_info()[0] + cached < times * needed() + SPARE

    def record(self, key: object, inputs: Inputs) -> None:
        """Record the work for inputs of these shapes; where that cannot be, say why and record nothing more."""
        started, fresh = time.perf_counter(), [value for value in self.trained if value.grad is None]
        try:
            self.recordings[key] = self.made(inputs)
            self.gradients = [value.grad for value in self.trained]
        except Exception as error:  # whatever a model does that cannot be recorded
            for value in fresh:
                value.grad = None
            cause = error.__context__  # the end of a recording only says that it failed
            self.fail(reason(cause if isinstance(cause, Exception) else error), error)
        self.seconds += time.perf_counter() - started

    def made(self, inputs: Inputs) -> Recording:
        """A recording, in the memory of those before."""
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        made = Graph(self.work, inputs, self.pool, self.stream)
        self.pool, self.held = made.pool, self.held + torch.cuda.memory_reserved() - before
        return made

    def fail(self, why: str, error: Exception | None = None) -> None:
        """Go on as it comes, or not at all."""
        self.forget()
        self.failed = f"{UNRECORDED}: {why}"
        if self.strict:
            raise TrainingError(f"{self.failed}. Train with cuda_graphs off, or without strict") from error


def needed() -> int:
    """Bytes that the work needed at most so far, beside what stays."""
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()


def why_not(model: nn.Module) -> str:
    """The reason why a model's steps cannot be recorded; empty if they can be tried."""
    places = {str(value.device) for value in model.parameters()}
    if len(places) > 1 or not next(iter(places)).startswith("cuda"):
        return f"{UNRECORDED}: the model is on {' and '.join(sorted(places))}, and not on one GPU"
    return "" if is_causal(model) else f"{UNRECORDED}: a {type(model).__name__} reads a mask"
