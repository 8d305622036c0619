"""The figures that training is to reach, beside what was measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from steps.points import Point
from steps.results import Measured

Results = Mapping[Point, Measured]
NONE = Measured()


@dataclass(frozen=True)
class Goal:
    """A row under a setting: at most `time` and `memory` of its limit. `rival` is HF PEFT's best, if it has the method."""

    words: str
    point: Point
    time: float
    memory: float
    rival: Point | None = None


def goal(words: str, row: str, time: float, memory: float, rival: bool = True, **setting: object) -> Goal:
    """A goal of one of Graft's methods and PEFT's best of the same under the same setting."""
    beside = Point(row=f"peft-{row}-best", **setting) if rival else None  # type: ignore[arg-type]
    return Goal(words, Point(row=row, **setting), time, memory, beside)  # type: ignore[arg-type]


GOALS = (
    goal("LoRA, 4096 tokens", "lora", 1.08, 1.03),
    goal("LoRA, 8192 tokens", "lora", 1.05, 1.03, batch=4),
    goal("LoRA, dropout 0.05", "lora", 1.10, 1.05, dropout=0.05),
    goal("DoRA", "dora", 1.13, 1.08),
    goal("DoRA, dropout 0.05", "dora", 1.13, 1.08, dropout=0.05),
    goal("bottleneck 64, two a block", "bottleneck", 1.06, 1.20, rival=False),
    goal("IA3", "ia3", 1.04, 1.03),
    goal("biases", "bias", 1.04, 1.03, rival=False),
    goal("prefix 20", "prefix", 1.03, 1.03),
    goal("prompt 20", "prompt", 1.03, 1.03),
    goal("last 2 of 32 layers", "last-k", 0.58, 0.66, rival=False),
)


@dataclass(frozen=True)
class Figure:
    """One number, in a unit, at most `most`."""

    words: str
    unit: str
    most: float
    value: Callable[[Results], float | None]


def four_bits(results: Results) -> float | None:
    """LoRA on NF4 to LoRA on bfloat16, both as ratios to the limit of their own card."""
    packed, dense = (results.get(Point(row="lora", batch=4, base=base), NONE).ratio for base in ("nf4", "bf16"))
    return packed / dense if packed and dense else None


def weights(results: Results) -> float | None:
    """Bits a parameter of the packed weights."""
    lines = results.get(Point(row="lora", batch=4, base="nf4"), NONE).lines
    return float(lines[-1]["bits"]) if lines else None


def step_ms(part: float) -> Callable[[Results], float | None]:
    """Milliseconds of LoRA's step with this part of the positions supervised, by Graft's own loss."""
    return lambda results: results.get(Point(row="lora", loss="chunked", supervised=part), NONE).ms or None


def on_cpu(row: str) -> Callable[[Results], float | None]:
    """The ratio to the limit on one thread of a CPU."""
    return lambda results: results.get(Point(row=row, shape="smollm2", batch=8, tokens=48, rank=8, threads=1), NONE).ratio


FIGURES = (
    Figure("LoRA on NF4, 8192 tokens", "of LoRA on bfloat16", 1.12, four_bits),
    Figure("weights in NF4", "bits a parameter", 4.1275, weights),
    Figure("LoRA, Graft's loss, a quarter of the positions supervised", "ms", 200, step_ms(0.25)),
    Figure("LoRA, Graft's loss, all positions supervised", "ms", 220, step_ms(1.0)),
    Figure("LoRA on a CPU", "of the limit", 1.08, on_cpu("lora-eager")),
    Figure("DoRA on a CPU", "of the limit", 1.12, on_cpu("dora-eager")),
)
