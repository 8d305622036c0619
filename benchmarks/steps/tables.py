"""The tables of docs/performance.md, each a list of lines of Markdown from the results."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from steps.goals import FIGURES, GOALS, NONE, Results
from steps.plans import CPU, CURVES, LENGTHS, METHODS, RANKS, checkpointing, dropout, nf4, past_the_limit, table
from steps.points import LIMIT, Point
from steps.results import GIB, Line, Measured

DASH = "–"


def rows_of(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A table, its first column to the left, the others to the right."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *body)]


def times(value: float | None, digits: int = 3) -> str:
    """A ratio."""
    return DASH if value is None else f"{value:.{digits}f}"


def reached(*pairs: tuple[float | None, float]) -> str:
    """Whether every value is at most its bound; nothing where none is known."""
    known = [value <= most for value, most in pairs if value is not None]
    return DASH if not known else "yes" if all(known) and len(known) == len(pairs) else "**no**"


def goals(results: Results) -> list[str]:
    """The figures to reach."""
    body = []
    for goal in GOALS:
        ours = results.get(goal.point, NONE)
        best = results.get(goal.rival, NONE) if goal.rival else NONE
        both = reached((ours.ratio, goal.time), (ours.memory, goal.memory))
        rival = f"{times(best.ratio)}, {times(best.memory)}" if best.ratio else "failed" if best.failed else DASH
        body.append([goal.words, f"≤ {goal.time:.2f}", times(ours.ratio), f"≤ {goal.memory:.2f}", times(ours.memory), both, rival])
    return rows_of(["", "time to reach", "time", "peak to reach", "peak", "reached", "HF PEFT's best: time, peak"], body)


def figures(results: Results) -> list[str]:
    """The figures to reach that are no ratio to the limit of a card."""
    body = []
    for figure in FIGURES:
        value, digits = figure.value(results), 1 if figure.unit == "ms" else 3
        most = f"{figure.most:g}" if figure.unit != "bits a parameter" else "4.127"
        body.append([figure.words, f"≤ {most} {figure.unit}", times(value, digits), reached((value, figure.most))])
    return rows_of(["", "to reach", "measured", "reached"], body)


def plain(points: Iterable[Point], name: Callable[[Point], str] = lambda point: f"`{point.row}`") -> Callable[[Results], list[str]]:
    """One line a point: time, ratio, peak, ratio, first step."""
    chosen = list(dict.fromkeys(points))

    def lines(results: Results) -> list[str]:
        body = [[name(point), *cells(results[point])] for point in chosen if point in results]
        return rows_of(["row", "ms", "to the limit", "peak, GiB", "to the limit", "first step, s"], body) if body else [DASH]

    return lines


def cells(one: Measured) -> list[str]:
    """What is known of one point."""
    if one.failed:
        reason = "out of memory" if "out of memory" in one.failed.lower() else "failed"
        return [reason, *[DASH] * 4]
    many = f" ({one.low:.3f} to {one.high:.3f})" if one.low and one.high and one.high > one.low else ""
    cold = max(line["cold_s"] for line in one.lines)
    return [f"{one.ms:.1f}", times(one.ratio) + many, f"{one.peak / GIB:.1f}", times(one.memory), f"{cold:.1f}"]


def against(settings: Sequence[tuple[str, dict[str, object]]], rows: Sequence[str], title: str) -> Callable[[Results], list[str]]:
    """One line a row, one column a setting: time and peak to the limit."""

    def lines(results: Results) -> list[str]:
        body = []
        for row in rows:
            found = [results.get(Point(row=row, **setting), NONE) for _, setting in settings]  # type: ignore[arg-type]
            said = [f"{times(one.ratio)}, {times(one.memory)}" if one.ratio else "failed" if one.failed else DASH for one in found]
            body.append([f"`{row}`", *said])
        return rows_of([title, *(words for words, _ in settings)], body)

    return lines


def flat(results: Results) -> list[str]:
    """Points whose peak grew after the fourth timed step."""
    known = [(point, line) for point, one in results.items() for line in one.lines if line.get("peak_last")]
    grown = [point.words for point, line in known if line["peak_last"] > line["peak_after_4"]]
    if not known:
        return ["Not measured yet."]
    said = f"Of {len(known)} measurements on cards, the last step's peak is above the fourth's in {len(grown) or 'none'}"
    return [said + (f": {'; '.join(grown)}." if grown else ".")]


def span(values: Sequence[float]) -> str:
    """A value, or from where to where several go."""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def cold(lines: Sequence[Line]) -> list[str]:
    """How long the first step takes where nothing is compiled yet, and what making and adapting the model takes before it."""
    found = [line for line in lines if line.get("cold") and "failed" not in line]
    rows = {row: [line for line in found if line["point"]["row"] == row] for row in dict.fromkeys(line["point"]["row"] for line in found)}
    body = [
        [f"`{row}`", *(span([line[what] for line in own]) for what in ("setup_s", "cold_s")), str(own[0]["graphs"])]
        for row, own in rows.items()
    ]
    return rows_of(["row", "set up, s", "first step, s", "graphs"], body) if body else ["Not measured yet."]


def cpu(results: Results) -> list[str]:
    """CPU time to the limit on one and two threads, with quartiles."""
    points = [Point(row=row, shape="smollm2", batch=8, tokens=48, rank=8, threads=1) for row in CPU]
    body = []
    for point in points:
        both = [results.get(replace(point, threads=threads), NONE) for threads in (1, 2)]
        said = [f"{one.ratio:.3f} ({one.low:.3f} to {one.high:.3f})" if one.ratio else DASH for one in both]
        body.append([f"`{point.row}`", *said])
    return rows_of(["row", "one thread", "two threads"], body)


def with_setting(point: Point) -> str:
    """A row's name and what else tells it apart."""
    extra = [point.base] if point.base != "bf16" else []
    extra += [f"{point.loss} loss of {point.supervised:.0%}"] if point.loss != "hf" else []
    return ", ".join([f"`{point.row}`", *extra])


TOKENS = [(f"{batch * length}", {"batch": batch, "tokens": length}) for batch, length in LENGTHS]
TABLES: dict[str, Callable[[Results], list[str]]] = {
    "goals": goals,
    "figures": figures,
    "table": plain(table()),
    "tokens": against(TOKENS, ("limit-recorded", *METHODS, *CURVES[2:]), "tokens a step"),
    "rank": against([(str(r), {"rank": r}) for r in RANKS], CURVES, "rank"),
    "checkpointing": plain(checkpointing()),
    "dropout": plain([point for point in dropout() if point.row != LIMIT]),
    "nf4": plain(nf4(), with_setting),
    "past-the-limit": plain(past_the_limit(), with_setting),
    "flat": flat,
    "cpu": cpu,
}
