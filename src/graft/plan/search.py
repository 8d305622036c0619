"""A way to train that fits: batch, accumulation, checkpointing, compiling, 4 bits, the optimizer, length and rank, the least change first.

An update is of GOAL rows however they are split. Changes are tried in steps, each with all batches, with and without checkpointing, and in
the first step in which any fits the plainest is taken that is at most MATERIAL slower than the fastest:

    what computes the same      smaller batches with more of them an update, checkpointing; if none fits, blocks compiled all the same
    4 bits for the base         equal scores and losses in our own comparison (docs/results.md)
    8 bits for the optimizer
    both
    both, rows cut              at the length that 95 of 100 rows do not exceed
    all that, rank 4
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graft.method import Method
from graft.model.recorded import SPARE
from graft.model.regional import EARNS
from graft.model.waits import HOST
from graft.plan.cards import Card
from graft.plan.job import Job
from graft.plan.memory import Memory, memory
from graft.plan.pace import Pace, pace
from graft.plan.rows import Rows
from graft.plan.setup import Setup

GOAL = 16  # rows of an update
MATERIAL = 0.05  # share of an update's time below which two ways are equally fast
WINDOW = 8 * GOAL  # rows among which training puts those of like length together
EPOCHS = 3  # as `graft train` has it
CONTEXT = 600_000_000  # bytes of a card that are no tensors: the CUDA context and the kernels' code
RESERVE = 0.03  # share of a card that the allocator cannot use: pieces between tensors
PROCESS = 1_000_000_000  # bytes of a process on a CPU that are no tensors: libraries, and what freed tensors leave (0.4 to 1.1 GB measured)
KEPT = 0.95  # of the rows that are not cut
SMALL_RANK = 4
ROUND = 64  # tokens: batches of compiled models are as long as a multiple of it

Makes = Callable[[Method, Setup], Job]


@dataclass(frozen=True)
class Choice:
    """A way to train: the job, its method, its peak, seconds an update (None without a card), and in words what was given up for it."""

    job: Job
    method: Method
    memory: Memory
    seconds: float | None
    given_up: tuple[str, ...] = ()

    @property
    def setup(self) -> Setup:
        """How it is trained."""
        return self.job.setup


def room(size: int, cpu: bool = False) -> int:
    """Bytes for tensors on a card of so many, or in a process on a CPU that may have so many."""
    return max(0, round(size * (1 - RESERVE)) - (PROCESS if cpu else CONTEXT))


def changes(rows: Rows, method: Method, start: Setup) -> Iterator[tuple[Method, dict[str, object], tuple[str, ...]]]:
    """The steps of giving up, in order: the method, fields of the setup, in words. On a CPU nothing is held in fewer bits."""
    most = start.tokens
    four, eight = "the base in 4 bits", "the optimizer's states in 8 bits"
    short = min(max(rounded(rows.share(KEPT)), rows.answer + 1), most) if rows.source else max(most // 2, 1)
    cut = f"rows cut at {short} tokens" + (f", which {KEPT:.0%} of them do not exceed" if rows.source else "")
    small: Method = method
    if getattr(method, "r", 0) > SMALL_RANK:
        small = dataclasses.replace(method, r=SMALL_RANK)  # type: ignore[type-var]
    tiny = (f"rank {SMALL_RANK}",) if small is not method else ()
    both: dict[str, object] = {} if start.cpu else {"nf4": True, "optimizer": "adamw8bit"}
    bits = () if start.cpu else (four, eight)
    yield method, {}, ()
    if not start.cpu:
        yield method, {"nf4": True}, (four,)
        yield method, {"optimizer": "adamw8bit"}, (eight,)
        yield method, both, bits
    if short < most:
        yield method, both | {"tokens": short}, (*bits, cut)
    yield small, both | {"tokens": min(short, most)}, (*bits, *((cut,) if short < most else ()), *tiny)


def rounded(length: int) -> int:
    """A length as batches have it."""
    return -(-length // ROUND) * ROUND


def ways(setup: Setup, compiles: bool) -> Iterator[Setup]:
    """All ways that compute the same: the fewest and plainest changes first."""
    for compiled in dict.fromkeys((compiles, not setup.cpu)):
        for remade in (False, True):
            for power in range(GOAL.bit_length()):
                batch = GOAL >> power
                yield dataclasses.replace(setup, batch=batch, accum=GOAL // batch, checkpointing=remade, compiled=compiled)


def fitting(makes: Makes, method: Method, setup: Setup, rows: Rows, limit: int | None, card: Card | None) -> Choice | None:
    """The least change with which a method fits into `limit` bytes of tensors, and in it the plainest way that is about the fastest; None
    where nothing does.
    """
    for own, fields, words in changes(rows, method, setup):
        job = makes(own, setup)
        start = dataclasses.replace(setup, **fields)  # type: ignore[arg-type]
        start = dataclasses.replace(start, supervised=rows.trained(start.tokens))
        found = [each for each in weighed(job, own, start, rows, card, words, limit) if limit is None or each.memory.peak <= limit]
        found = [each for each in found if each.setup.compiled == earns(job, rows)] or found  # seconds of an update leave compiling out
        if found:
            least = min(each.seconds or 0.0 for each in found)
            return next(each for each in found if (each.seconds or 0.0) <= (1 + MATERIAL) * least)
    return None


def weighed(
    job: Job, method: Method, setup: Setup, rows: Rows, card: Card | None, words: tuple[str, ...], limit: int | None = None
) -> Iterator[Choice]:
    """Every way of one step, with its peak and its time: training records its steps where the host's part of them matters, if a card is
    given, and `limit` has room for a recording.
    """
    for way in ways(setup, earns(job, rows)):
        held = memory(job.under(way))
        roomy = limit is None or held.peak + held.step + SPARE <= limit
        launched = job.under(dataclasses.replace(way, recorded=False))
        recorded = roomy and not way.cpu and (card is None or waits(launched, card, rows))
        made = job.under(dataclasses.replace(way, recorded=recorded))
        said = ("blocks compiled, which the run is too short to earn back",) if way.compiled and not earns(job, rows) else ()
        yield Choice(made, method, held, update(made, card, rows) if card else None, words + said)


def earns(job: Job, rows: Rows) -> bool:
    """Whether training would compile the blocks by itself: on a GPU, where it is long enough, or its length is not known."""
    if job.setup.cpu:
        return False
    total = EPOCHS * rows.count * rows.mean
    return not rows.count or total * job.facts.layers * job.facts.block >= EARNS


def waits(job: Job, card: Card, rows: Rows) -> bool:
    """Whether the host's part of a step that it launches kernel by kernel is large enough to record it."""
    timed = typical(job, card, rows)
    return timed.host > HOST * timed.card


def update(job: Job, card: Card, rows: Rows) -> float:
    """Seconds of an optimizer's update."""
    timed = typical(job, card, rows)
    return job.setup.accum * timed.batch + timed.update


def typical(job: Job, card: Card, rows: Rows) -> Pace:
    """How long a batch takes that is as long as the rows are on average, not as the longest."""
    setup = job.setup
    multiple = ROUND if setup.compiled else 1
    length = max(1, round(rows.padded(setup.batch, setup.tokens, WINDOW, multiple))) if rows.source else setup.tokens
    return pace(job.under(dataclasses.replace(setup, tokens=length, supervised=rows.supervised)), card)


def smallest(makes: Makes, method: Method, setup: Setup, rows: Rows) -> int:
    """The bytes of the smallest memory that trains a method with no more given up than 16 bits of the base."""
    fours = (False,) if setup.cpu else (False, True)
    starts = [dataclasses.replace(setup, nf4=nf4, supervised=rows.trained(setup.tokens)) for nf4 in fours]
    peaks = [memory(makes(method, way)).peak for start in starts for way in ways(start, compiles=not setup.cpu)]
    return round((min(peaks) + (PROCESS if setup.cpu else CONTEXT)) / (1 - RESERVE)) + 1
