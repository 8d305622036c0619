"""How to train, and what a training run did: the configuration, the learning-rate schedule, the result.

The learning rate rises linearly to its peak during `warmup` (a fraction of the steps), then falls to zero in a line or half
a cosine, or stays. `seconds_per_step` is the median over the steps after the first two, evaluation not counted. Tokens are
all tokens that are not padding. Compiling the model's blocks (graft.model.regional) is on where it pays ("auto": a GPU, and enough work),
"on" or "off"; so is recording steps as CUDA graphs (graft.model.recorded; "auto": on a GPU that has room for it, where the host needs more
than half of the card's time to launch a step). Low-rank branches are fused with their products (graft.model.fused) unless `fuse` is False:
the plain way, to compare with. `strict`: what cannot run so is an error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from graft.errors import TrainingError
from graft.kernels.optimizers import OPTIMIZERS
from graft.model.recorded import Recorded
from graft.model.regional import CHOICES, Compiled

SCHEDULES: dict[str, Callable[[float], float]] = {  # of the fraction of the steps after warm-up that are done
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A step reads `batch_size * grad_accum` rows; 0 for `clip`, `eval_every`, `patience` or `save_every` means off."""

    learning_rate: float = 1e-3
    max_steps: int = 100
    batch_size: int = 16
    grad_accum: int = 1
    warmup: float = 0.05
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    eval_every: int = 0
    patience: int = 0
    save_every: int = 0
    seed: int = 0
    checkpointing: bool = False
    fuse: bool = True
    compile: str = "auto"
    cuda_graphs: str = "auto"
    strict: bool = False
    optimizer: str = "adamw"
    tracker: str = "none"
    tracker_dir: str = "runs"

    def __post_init__(self) -> None:
        off = dict.fromkeys(("eval_every", "patience", "save_every", "clip", "weight_decay"), 0)
        least = {"max_steps": 1, "batch_size": 1, "grad_accum": 1} | off
        for name, low in least.items():
            if not getattr(self, name) >= low:  # a NaN is not either
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"learning_rate is {self.learning_rate}; it must be a positive number.")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup is {self.warmup}; it is a fraction of the steps, from 0 to less than 1.")
        for name, choices in {"schedule": SCHEDULES, "compile": CHOICES, "cuda_graphs": CHOICES, "optimizer": OPTIMIZERS}.items():
            if getattr(self, name) not in choices:
                raise TrainingError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}.")
        if self.patience and not self.eval_every:
            raise TrainingError("patience needs eval_every: early stopping looks at the validation loss.")


@dataclass(frozen=True)
class Step:
    """What a callback hears after each step. Losses are nats a supervised token; the norm is from before clipping."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    validation_loss: float | None


@dataclass(frozen=True)
class TrainResult:
    """What a run did. `stopped` is "max_steps" or "early"; `validation_loss` is that of the tensors now in the model.

    `seconds` is everything; `seconds_per_step` and `tokens_per_second` leave out what compiling and recording took. `compiled` is None
    where no block was to be compiled, `recorded` where no step was to be recorded. `fused` counts the low-rank branches by how they run
    (graft.model.fused), `apart` is why the first of those that do not run fused does not.
    """

    steps: int
    tokens: int
    seconds: float
    seconds_per_step: float
    tokens_per_second: float
    curve: list[dict[str, float | int | None]]
    peak_memory_bytes: int
    stopped: str
    validation_loss: float | None = None
    best_step: int | None = None
    compiled: Compiled | None = None
    recorded: Recorded | None = None
    fused: dict[str, int] = field(default_factory=dict)
    apart: str = ""

    @property
    def notes(self) -> list[str]:
        """What a user should hear, a line each."""
        unrecorded = self.recorded.failed if self.recorded else ""
        return [text for text in (self.apart, *(self.compiled.notes if self.compiled else []), unrecorded) if text]


def factor(config: TrainConfig, step: int) -> float:
    """Learning rate over its peak at a step counted from 1; never zero, so that every step moves."""
    warm = round(config.warmup * config.max_steps)
    if step <= warm:
        return step / warm
    return SCHEDULES[config.schedule]((step - 1 - warm) / (config.max_steps - warm))
