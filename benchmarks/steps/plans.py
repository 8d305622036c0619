"""Named plans: which points each table and plot of docs/performance.md needs. A point that two plans name is measured once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from steps.points import LIMIT, Point

METHODS = ("lora", "dora", "bottleneck", "ia3", "bias", "prefix", "prompt", "last-k")
PEFT = ("peft-lora", "peft-dora", "peft-ia3", "peft-prefix", "peft-prompt")
BEST = tuple(f"{name}-best" for name in PEFT)
CURVES = ("lora", "dora", "peft-lora-best", "peft-dora-best")
CPU = ("limit-eager", "lora-eager", "dora-eager", "bottleneck-eager", "ia3-eager", "bias-eager", "prefix-eager", "prompt-eager",
       "last-k-eager", "lora-plain", "dora-plain", "peft-lora", "peft-dora", "full-eager")  # fmt: skip
LENGTHS = ((1, 512), (1, 1024), (1, 2048), (2, 2048), (4, 2048))
"""Rows and tokens of each: 512 to 8192 tokens a step."""
RANKS = (8, 16, 32, 64, 128)


def points(rows: Iterable[str], **settings: object) -> list[Point]:
    """One setting for several rows, the limit first."""
    return [Point(row=row, **settings) for row in (LIMIT, *rows)]  # type: ignore[arg-type]


def table() -> list[Point]:
    """Every row at 4096 tokens a step."""
    other = ("lora-recorded", "dora-recorded", "last-k-recorded", "lora-apart", "dora-apart", "full")
    eager = ("limit-eager", "lora-eager", "dora-eager", "full-eager")
    return points(("limit-recorded", *METHODS, *BEST, *PEFT, *other, *eager))


def tokens() -> list[Point]:
    """Time and memory against tokens a step; every method at the ends."""
    ends = [point for batch, length in (LENGTHS[0], LENGTHS[-1]) for point in points(METHODS, batch=batch, tokens=length)]
    return [point for batch, length in LENGTHS for point in points(("limit-recorded", *CURVES), batch=batch, tokens=length)] + ends


def rank() -> list[Point]:
    """Time and memory against rank."""
    return [point for r in RANKS for point in points(CURVES, rank=r)]


def checkpointing() -> list[Point]:
    """Each block's activations made again: 8192 tokens a step."""
    return points((*METHODS, *BEST[:3], "peft-lora"), batch=4, checkpointing=True)


def dropout() -> list[Point]:
    """Low-rank branches that drop their input."""
    return points(CURVES, dropout=0.05)


def nf4() -> list[Point]:
    """A base in 4 bits, beside the same in bfloat16."""
    fours = [replace(point, base="nf4") for point in points(("lora", "dora", "peft-lora-best"), batch=4)]
    return points(("lora",), batch=4) + fours


def past_the_limit() -> list[Point]:
    """The loss of chosen positions only, in chunks."""
    ours = [replace(point, loss="chunked", supervised=part) for part in (0.25, 1.0) for point in points(("lora", "dora"))]
    return points(("lora", "peft-lora-best", "peft-lora")) + ours


def cpu() -> list[Point]:
    """SmolLM2-135M's shape on one and two threads, each row in turn with the limit, in a process of its own."""
    return [Point(row=row, shape="smollm2", batch=8, tokens=48, rank=8, threads=threads) for threads in (1, 2) for row in CPU]


def cold() -> list[Point]:
    """What the first step costs; to be measured with empty compile caches, into a file of its own."""
    return points(("lora", "dora", "ia3", "prefix", "peft-lora-best"))


def planner() -> list[Point]:
    """What the planner's predictions are judged by: shapes, lengths, checkpointing and bases that nothing in it was set by."""
    few = {
        ("7b", 1, 512, False): ("lora", "dora chunked", "bottleneck", "last-k", "prefix chunked", "lora nf4"),
        ("7b", 4, 2048, True): ("lora chunked", "ia3", "prompt chunked", "dora nf4"),
        ("3b", 2, 2048, False): ("lora", "dora", "bias", "norms", "bottleneck chunked", "lora nf4", "lora chunked"),
        ("1b", 4, 2048, False): ("lora chunked", "dora", "prefix", "prompt", "last-k chunked", "ia3", "bottleneck nf4"),
        ("1b", 1, 1024, True): ("lora", "bottleneck", "lora nf4 chunked"),
        ("3b", 1, 8192, True): ("dora chunked", "prefix", "lora nf4 chunked"),
    }
    return spread(few)


def planner_again() -> list[Point]:
    """More of them, for what was changed after those above were seen: 4 bits with checkpointing, few tokens, steps that are recorded."""
    few = {
        ("1b", 2, 512, True): ("lora nf4 chunked", "dora"),
        ("3b", 1, 1024, True): ("lora nf4", "ia3", "prompt chunked"),
        ("7b", 1, 2048, False): ("bottleneck nf4 chunked", "lora chunked", "norms"),
    }
    return spread(few)


def spread(few: Mapping[tuple[str, int, int, bool], Sequence[str]]) -> list[Point]:
    """Rows and what is changed for them, by shape, rows, tokens and whether it is checkpointed; the limit of each setting first."""
    changes = {"nf4": {"base": "nf4"}, "chunked": {"loss": "chunked", "supervised": 0.25}}
    found = []
    for (shape, batch, length, remade), rows in few.items():
        limit = Point(shape=shape, batch=batch, tokens=length, checkpointing=remade)
        found.append(limit)
        for row, *words in map(str.split, rows):
            found.append(replace(limit, row=row, rank=16, **{name: value for word in words for name, value in changes[word].items()}))
    return found


def planner_fit() -> list[Point]:
    """What the planner's figures for the host are set by: steps so small that launching them takes longer than running them."""
    small = {"shape": "1b", "batch": 1, "tokens": 512}
    return [*points(("lora", "dora", "ia3"), **small), *points(("lora",), **small, checkpointing=True)]


def smoke() -> list[Point]:
    """Every row and every setting on a model that fits anywhere: whether all of it runs, not how fast."""
    small = {"shape": "tiny", "batch": 2, "tokens": 32, "rank": 4}
    bent = [{"dropout": 0.05}, {"checkpointing": True}, {"base": "nf4"}, {"loss": "chunked", "supervised": 0.25}]
    return points((*METHODS, *BEST, *PEFT, "full", "lora-plain"), **small) + [
        point for change in bent for point in points(("lora", "dora"), **small | change)
    ]


PLANS = {
    "table": table, "tokens": tokens, "rank": rank, "checkpointing": checkpointing, "dropout": dropout, "nf4": nf4,
    "past-the-limit": past_the_limit, "cpu": cpu, "cold": cold, "planner": planner, "planner-fit": planner_fit,
    "planner-again": planner_again,
    "smoke": smoke,
}  # fmt: skip


def planned(names: Sequence[str], repeats: int = 1) -> list[Point]:
    """The points of these plans, each once, in order; all of them again for each repetition."""
    found = [replace(point, repeat=number) for number in range(repeats) for name in names for point in PLANS[name]()]
    return list(dict.fromkeys(found))
