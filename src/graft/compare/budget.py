"""`--budget 30m`: how many steps, learning rates, seeds and test rows fit in a time, from a timed warm-up.

The warm-up times a few steps of the dearest method asked for and the scoring of a few test rows by the base. With M methods,
T trials (0 if there is one rate only), S seeds and N steps, the estimate is

    M (T + S) (N step + evaluations + attaching and timing)  +  (M S + 1) rows x row  +  the in-context baseline

every method counted as dear as the dearest. From the richest choice of (rates, seeds) on, the first is taken whose steps reach a
useful number; bounds given by hand stay as they are. All methods get the same steps (so the same tokens), rates and seeds.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table as RichTable

from graft.compare.baselines import JUDGED
from graft.compare.settings import Bounds, CompareConfig, by_hand
from graft.compare.trials import EVALUATIONS, Bench, attached, fit, scored
from graft.errors import DataError
from graft.train.meter import Clock
from graft.train.progress import duration

UNITS = {"h": 3600, "m": 60, "s": 1}
CHOICES = ((3, 3), (3, 2), (3, 1), (1, 1))  # (learning rates, seeds), the richest first
USEFUL_STEPS = 100
LEAST_STEPS = 10
EPOCHS = 3  # more passes over the training rows than this are not worth their time
SCORING = 0.3  # of the budget, at most, goes to test rows
LEAST_ROWS = 20
RESERVE = 0.9  # of the budget is planned; the rest is for what was not foreseen
DEAREST = ("full", "dora", "bottleneck", "lora", "prefix", "prompt", "last-k", "ia3", "bias", "norms")
WARM_UP = Bounds(trials=1, seeds=1, max_steps=4, eval_limit=8)
FORWARD = 1 / 3  # of a training step is its forward
ADAPTED = 1.2  # scoring through an adapter, relative to the base
LONGER = 3.0  # scoring with in-context examples, relative to without


@dataclass(frozen=True)
class Costs:
    """Seconds: of one step of the dearest method, of what every run costs besides, of one test row scored by the base."""

    step: float
    run: float
    row: float


@dataclass(frozen=True)
class Job:
    """What a comparison consists of, whatever its bounds."""

    methods: int
    rows_train: int
    rows_test: int
    rows_validation: int
    rows_step: int
    shots: int


def seconds(budget: str) -> float:
    """A time such as 30m, 1h30m or 90s, in seconds. Raises DataError for anything else."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", budget.strip().lower())
    total = sum(int(number) * unit for number, unit in zip(parts.groups(), UNITS.values(), strict=True) if number) if parts else 0
    if not total:
        raise DataError(f"budget is {budget!r}; write a time such as 30m, 2h or 1h30m.")
    return float(total)


def job_of(bench: Bench, methods: Sequence[str]) -> Job:
    """The job of a bench."""
    material, config = bench.material, bench.config
    sizes = len(material.examples), len(material.test), len(material.validation)
    return Job(len(methods), *sizes, config.batch_size * config.grad_accum, len(config.shots))


def warm_up(bench: Bench, methods: Sequence[str]) -> Costs:
    """Time a few steps of the dearest method and a few test rows; the base is left as it was."""
    small = replace(bench, bounds=WARM_UP)
    name = next(name for name in DEAREST if name in methods)
    with Clock() as whole, attached(small, name, 0) as adapted:
        result = fit(small, adapted, 1e-6, 0, "warm-up")
    with Clock() as timed:
        scored(small, small.loaded.model)
    rows = len(small.material.scored(WARM_UP))
    return Costs(result.seconds_per_step, max(whole.seconds - result.seconds, 0.0) + 2.0, timed.seconds / rows)


def estimate(costs: Costs, job: Job, bounds: Bounds) -> float:
    """Seconds the whole comparison takes."""
    return job.methods * bounds.runs * (bounds.max_steps * costs.step + per_run(costs, job, bounds)) + scoring(costs, job, bounds)


def per_run(costs: Costs, job: Job, bounds: Bounds) -> float:
    """Seconds of one run beside its steps: evaluations of the validation loss, attaching, timing."""
    rows = min(job.rows_validation, max(job.rows_step, job.rows_step * bounds.max_steps // 16))
    return EVALUATIONS * FORWARD * costs.step * rows / job.rows_step + costs.run


def scoring(costs: Costs, job: Job, bounds: Bounds) -> float:
    """Seconds of scoring: every final run, the base, and the base with examples (once for each k on validation rows)."""
    rows = min(bounds.eval_limit or job.rows_test, job.rows_test)
    shown = rows + job.shots * min(JUDGED, job.rows_validation, rows)
    return costs.row * (rows * (1 + ADAPTED * job.methods * bounds.seeds) + LONGER * shown)


def fit_budget(config: CompareConfig, costs: Costs, job: Job, total: float) -> Bounds:
    """The bounds that fit in `total` seconds. Raises DataError if not even the smallest choice does and nothing was set by hand."""
    tried = [bounds_for(config, costs, job, RESERVE * total, trials, seeds) for trials, seeds in CHOICES]
    useful = min(USEFUL_STEPS, most_steps(job))
    for bounds in tried:
        if bounds.max_steps >= (config.max_steps or useful) and estimate(costs, job, bounds) <= total:
            return bounds
    least = tried[-1]
    if least.max_steps < LEAST_STEPS and config.max_steps is None:
        needed = estimate(costs, job, replace(least, max_steps=LEAST_STEPS)) / RESERVE
        advice = "raise the budget, name fewer methods, or set --max-steps"
        raise DataError(f"{config.budget} is too short: {LEAST_STEPS} steps of each method take about {duration(needed)}; {advice}.")
    return least


def most_steps(job: Job) -> int:
    """Steps of EPOCHS passes over the training rows."""
    return max(LEAST_STEPS, EPOCHS * job.rows_train // job.rows_step)


def bounds_for(config: CompareConfig, costs: Costs, job: Job, total: float, trials: int, seeds: int) -> Bounds:
    """With so many rates and seeds, unless set by hand: as many test rows as their share allows, then as many steps as are left."""
    bounds = by_hand(config, Bounds(trials, seeds, 1, 1))
    if config.eval_limit is None:
        counts = range(1, job.rows_test + 1)
        fitting = bisect_right(counts, SCORING * total, key=lambda rows: scoring(costs, job, replace(bounds, eval_limit=rows)))
        bounds = replace(bounds, eval_limit=min(job.rows_test, max(LEAST_ROWS, fitting)))
    if config.max_steps is None:
        counts = range(1, most_steps(job) + 1)
        fitting = bisect_right(counts, total, key=lambda steps: estimate(costs, job, replace(bounds, max_steps=steps)))
        bounds = replace(bounds, max_steps=max(1, fitting))
    return bounds


def shown(bounds: Bounds, job: Job, config: CompareConfig, expected: float | None) -> RichTable:
    """The plan as a table to print before it starts; `expected` seconds, or None if nothing was timed."""
    table = RichTable(title="Plan", show_header=False, title_justify="left")
    rows = min(bounds.eval_limit or job.rows_test, job.rows_test)
    lines = {
        "methods": f"{job.methods}, and the base zero-shot and with examples",
        "learning rates": f"{bounds.trials} for each method" if bounds.searches else "each method's default",
        "final runs": f"{bounds.seeds} for each method",
        "training": f"{bounds.max_steps} steps of {job.rows_step} rows a run, {job.methods * bounds.runs} runs",
        "scored": f"{rows} of {job.rows_test} test rows",
        "budget": config.budget or "none",
        "estimate": "not timed (only --budget times it)" if expected is None else f"at most about {duration(expected)}",
    }
    for name, text in lines.items():
        table.add_row(name, text)
    return table
