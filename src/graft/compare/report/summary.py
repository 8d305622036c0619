"""Records to one row a method: averages over seeds, intervals, differences from the best, ties, and what is missing.

A method's score is the mean over its finished final runs; its costs are means over them too, the peak memory their maximum.
The best is the row with the best score, baselines included. The pick is the cheapest row that ties with the best: fewest
trainable parameters, then fewest context positions, then the smallest file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from graft.compare import statistics, wording
from graft.compare.records import Plan, Records, Run
from graft.compare.report.catalogue import Entry, entry


@dataclass(frozen=True)
class Row:
    """One method of the table; None where nothing was measured. `gap` is the (mean, low, high) difference from the best."""

    method: str
    runs: tuple[Run, ...]
    score: float | None
    low: float | None = None
    high: float | None = None
    gap: tuple[float, float, float] | None = None
    tier: int | None = None

    @property
    def entry(self) -> Entry:
        """The method in print."""
        return entry(self.method)

    @property
    def baseline(self) -> bool:
        """Whether nothing was trained."""
        return self.runs[0].role == "baseline"

    @property
    def trainable(self) -> int | None:
        """Trainable parameters; 0 for a baseline."""
        return next((run.trainable_parameters for run in self.runs if run.trainable_parameters is not None), 0 if self.baseline else None)

    @property
    def adapter_bytes(self) -> float | None:
        """Size of the saved adapter on disk."""
        return mean(run.adapter_bytes for run in self.runs)

    @property
    def memory(self) -> int | None:
        """Peak memory in bytes, the largest of all seeds."""
        return max((run.peak_memory_bytes for run in self.runs if run.peak_memory_bytes is not None), default=None)

    @property
    def step_seconds(self) -> float | None:
        """Seconds one training step took."""
        return mean(run.seconds_per_step for run in self.runs)

    @property
    def speed(self) -> float | None:
        """Training tokens a second."""
        return mean(run.tokens_per_second for run in self.runs)

    def latency(self, kind: str) -> float | None:
        """Milliseconds of one forward, `kind` "merged" or "unmerged"."""
        return mean(run.latency_ms.get(kind) for run in self.runs)

    @property
    def served(self) -> float | None:
        """Milliseconds of one forward as one would serve it: merged where that was measured."""
        merged = self.latency("merged")
        return self.latency("unmerged") if merged is None else merged

    @property
    def positions(self) -> int | None:
        """Context positions the method consumes."""
        return next((run.context_positions for run in self.runs if run.context_positions is not None), None)

    @property
    def learning_rate(self) -> float | None:
        """The learning rate of the final runs."""
        return next((run.learning_rate for run in self.runs if run.learning_rate is not None), None)

    @property
    def mergeable(self) -> bool | None:
        """Whether the adapter folds into the base's weights; None if that was not recorded."""
        return next((run.mergeable for run in self.runs if run.mergeable is not None), None)

    @property
    def cost(self) -> tuple[float, float, float]:
        """What is compared when looking for the cheapest of equals."""
        return inf if self.trainable is None else self.trainable, self.positions or 0, self.adapter_bytes or 0


@dataclass(frozen=True)
class Missing:
    """Something that was asked for and has no result."""

    what: str
    status: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """All that a report says, before it is drawn. `rows` are best first; rows without a score come last."""

    plan: Plan
    metric: str
    rows: tuple[Row, ...]
    best: Row | None
    pick: Row | None
    trials: tuple[Run, ...]
    missing: tuple[Missing, ...]

    @property
    def tuned(self) -> tuple[Row, ...]:
        """The rows for which something was trained."""
        return tuple(row for row in self.rows if not row.baseline)

    @property
    def baselines(self) -> tuple[Row, ...]:
        """The rows for which nothing was trained."""
        return tuple(row for row in self.rows if row.baseline)

    @property
    def tied(self) -> tuple[Row, ...]:
        """The rows that cannot be told apart from the best, the best first."""
        return tuple(row for row in self.rows if row.tier == 1 or row is self.best)


def mean(values: Iterable[float | None]) -> float | None:
    """Average what was measured; None if nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarise(records: Records) -> Summary:
    """Build the summary of a comparison from its records alone; works on unfinished ones."""
    finals: dict[str, list[Run]] = {}
    for run in records.runs:
        if run.role != "trial" and run.status == "done":
            finals.setdefault(run.method, []).append(run)
    metric = next((run.metric for runs in finals.values() for run in runs if run.metric), records.plan.data.get("metric") or "score")
    rows = [Row(method, tuple(runs), mean(run.score for run in runs)) for method, runs in finals.items()]
    sign = -1 if wording.lower_is_better(metric) else 1
    rows.sort(key=lambda row: (row.score is None, -sign * (row.score or 0), row.cost, row.method))
    rows = judged(rows)
    best = rows[0] if rows and rows[0].score is not None else None
    pick = min((row for row in rows if best and (row.tier == 1 or row is best)), key=lambda row: row.cost, default=None)
    trials = tuple(run for run in records.runs if run.role == "trial")
    return Summary(records.plan, str(metric), tuple(rows), best, pick, trials, missing(records, finals))


def judged(rows: list[Row]) -> list[Row]:
    """Add intervals, gaps and tiers to rows given best first, where the items they were scored on are those of the best row."""
    items = {row.method: [run.per_item for run in row.runs if run.per_item] for row in rows if row.score is not None}
    length = next((len(runs[0]) for runs in items.values() if runs), 0)
    usable = {name: runs for name, runs in items.items() if runs and all(len(run) == length for run in runs)}
    if not usable:
        return rows
    sampled = dict(zip(usable, statistics.draws(list(usable.values())), strict=True))
    tiers = {name: tier for tier, group in enumerate(statistics.tie_groups(sampled), 1) for name in group}
    top = next(iter(usable))
    means = {name: float(statistics.matrix(runs).mean()) for name, runs in usable.items()}
    out = []
    for row in rows:
        if row.method in sampled:
            mine = sampled[row.method]
            gap = (means[row.method] - means[top], *statistics.bounds(mine - sampled[top]))
            row = Row(row.method, row.runs, row.score, *statistics.bounds(mine), gap, tiers[row.method])
        out.append(row)
    return out


def missing(records: Records, finals: dict[str, list[Run]]) -> tuple[Missing, ...]:
    """List failed and skipped runs, and planned methods without a final result."""
    out = []
    for run in records.runs:
        if run.status != "done":
            name = entry(run.method).title
            if run.role == "trial":
                name += f", trial at learning rate {wording.rate(run.learning_rate)}"
            elif run.seed is not None and run.method in finals:
                name += f", seed {run.seed}"
            out.append(Missing(name, run.status, run.reason or "no reason was recorded"))
    told = {run.method for run in records.runs if run.status != "done" and run.role != "trial"}
    for method in records.plan.methods:
        if method not in finals and method not in told:
            begun = any(run.method == method for run in records.runs)
            reason = "the comparison ended before its final runs" if begun else "the comparison ended before it began"
            out.append(Missing(entry(method).title, "unfinished", reason + "; start it again to go on"))
    return tuple(dict.fromkeys(out))  # a method that was skipped on every seed is told once
