"""Write the tables and the plot of docs/planning.md that compare what the planner predicts with what was measured.

    python benchmarks/plan_report.py

Points that the model was made with (`known`: those of the table of docs/performance.md, and `planner-fit`) stand apart from those that
judge it (the plans `planner` and `planner-again`). Results are read from results/train_step-*/*.jsonl of the kind of card whose folder
sorts last, and from results/plan-*/*.jsonl. A step that the host launches kernel by kernel (a line whose `recorded` is not true)
takes as long as the host needs where that is longer than the card's work: such points judge the memory, and their time stands apart.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from graft.compare.report.canvas import FONT, LIGHT, RC, Canvas, blank, matplotlib
from graft.plan.cards import named
from graft.plan.memory import memory
from graft.plan.pace import pace
from steps.plans import PLANS
from steps.points import Point
from steps.pool import Fields, lines_of
from steps.predicted import job_of, ours
from steps.results import GIB, measured
from train_report import RESULTS, read

PAGE = Path(__file__).parent.parent / "docs" / "planning.md"
PLOT = PAGE.parent / "planning" / "predicted.png"
TICKS = {"memory": (1, 2, 4, 8, 16, 32), "time": (10, 20, 50, 100, 200, 400, 800)}
LEARNT = Point("lora", "1b", 1, 1024, 16, checkpointing=True, base="nf4", loss="chunked", supervised=0.25)
"""Chosen to judge, and what showed that the model had an error: it judges no longer."""
WITHIN = 0.15  # what is asked of times
MARK = re.compile(r"(<!-- ([\w-]+): made by benchmarks/plan_report\.py -->\n).*?(<!-- end -->)", re.DOTALL)


class Judged(NamedTuple):
    """A point: bytes and milliseconds, measured and predicted; `waits` says that its time is predicted to be the host's."""

    point: Point
    peak: int
    said_peak: int
    ms: float
    said_ms: float
    waits: bool = False

    @property
    def memory(self) -> float:
        """How far the predicted peak is off, as a share of the measured one."""
        return self.said_peak / self.peak - 1

    @property
    def time(self) -> float:
        """The same of the time."""
        return self.said_ms / self.ms - 1


def lines() -> list[Fields]:
    """Every line of results of cards."""
    return [*read()[0], *lines_of(sorted(RESULTS.glob("plan-*/*.jsonl")))]


def compared(lines: Sequence[Fields]) -> tuple[list[Judged], list[Judged], list[Judged]]:
    """Points known beforehand, points that were chosen to judge, and all others that were measured."""
    device = next((line["device"] for line in lines if "device" in line), "")
    found = []
    for point, one in measured(lines).items():
        if ours(point) and not one.failed and one.peak:
            job = job_of(point, recorded=all(line.get("recorded") for line in one.lines))
            said = pace(job, named(device))
            found.append(Judged(point, one.peak, memory(job).peak, one.ms, 1000 * said.batch, said.batch == said.host))
    judges = {*PLANS["planner"](), *PLANS["planner-again"]()}
    known = {*PLANS["table"](), *PLANS["planner-fit"](), LEARNT}
    return (
        [one for one in found if one.point in known],
        [one for one in found if one.point in judges - known],
        [one for one in found if one.point not in judges | known],
    )


def table(found: Sequence[Judged]) -> list[str]:
    """One row a point, and the largest errors."""
    if not found:
        return ["Not measured yet."]
    lines = ["| step | peak, GiB | predicted | off | ms | predicted | off |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for one in found:
        gib = f"{one.peak / GIB:.2f} | {one.said_peak / GIB:.2f} | {one.memory:+.2%}"
        lines.append(f"| {one.point.words} | {gib} | {one.ms:.1f} | {one.said_ms:.1f} | {'host' if one.waits else f'{one.time:+.1%}'} |")
    return [*lines, "", summary(found)]


def summary(found: Sequence[Judged]) -> str:
    """How many points there are, and the largest errors."""
    if not found:
        return "None was measured yet."
    timed = [one for one in found if not one.waits]
    said = f"{len(found)} points; the largest error is {max(abs(one.memory) for one in found):.2%} of memory"
    if not timed:
        return f"{said}."
    worst, part = max(abs(one.time) for one in timed), "" if len(timed) == len(found) else f" in {len(timed)} whose time is the card's"
    within = sum(abs(one.time) <= WITHIN for one in timed)
    return f"{said}, and of time {worst:.1%}{part}" + (f" ({within} within {WITHIN:.0%})." if within < len(timed) else ".")


def plotted(known: Sequence[Judged], judged: Sequence[Judged]) -> bytes | None:
    """Errors of memory and time against what was measured, known points hollow; None where nothing judges."""
    if not judged:
        return None
    canvas, buffer = Canvas(LIGHT, 860, 340), io.BytesIO()
    with matplotlib().rc_context(RC):
        figure, axes = blank(canvas, nrows=1, ncols=2)
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.16, top=0.86, wspace=0.22)
        for place, name, bound in zip(axes, ("memory", "time"), (0.05, 0.15), strict=True):
            panel(canvas, place, name, bound, known, judged)
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def panel(canvas: Canvas, axes: Any, name: str, bound: float, known: Sequence[Judged], judged: Sequence[Judged]) -> None:
    """One of the two."""
    theme = canvas.theme
    axes.axhspan(-100 * bound, 100 * bound, color=theme.muted, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(TICKS[name], [str(tick) for tick in TICKS[name]])
    axes.minorticks_off()
    for found, fill in ((known, "none"), (judged, theme.families["rank"])):
        shown = [one for one in found if name == "memory" or not one.waits]
        x = [one.peak / GIB if name == "memory" else one.ms for one in shown]
        y = [100 * getattr(one, name) for one in shown]
        axes.scatter(x, y, s=26, facecolors=fill, edgecolors=theme.families["rank"], linewidths=1.1)
    axes.set_ylim(-160 * bound, 160 * bound)
    axes.set_title(f"predicted {name} off by, % (known before: hollow)", loc="left", fontsize=FONT, color=theme.ink, pad=10)
    axes.set_xlabel("measured peak, GiB" if name == "memory" else "measured time, ms", color=theme.muted, fontsize=FONT - 0.5)


def main() -> None:
    """Write the page and its plot."""
    known, judged, others = compared(lines())
    drawn = plotted(known, [*judged, *others])
    made = {"known": table(known), "judged": table(judged), "others": [summary(others)]}
    made["plot"] = ["![Predicted memory and time, off by percent](planning/predicted.png)" if drawn else "–"]
    PAGE.write_text(MARK.sub(lambda found: found[1] + "\n" + "\n".join(made[found[2]]) + "\n\n" + found[3], PAGE.read_text()))
    if drawn:
        PLOT.parent.mkdir(exist_ok=True)
        PLOT.write_bytes(drawn)


if __name__ == "__main__":
    main()
