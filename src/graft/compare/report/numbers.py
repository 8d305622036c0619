"""The table of all numbers: its columns, once, for the page, the Markdown file and the terminal alike."""

from collections.abc import Callable
from dataclasses import dataclass

from graft.compare import wording
from graft.compare.report.canvas import escaped
from graft.compare.report.catalogue import entry
from graft.compare.report.markup import section, small
from graft.compare.report.summary import Row, Summary
from graft.compare.wording import NBSP


@dataclass(frozen=True)
class Column:
    """One column: its heading, the text of a cell, what it is sorted by (None sorts last), and a second line on the page."""

    title: str
    text: Callable[[Summary, Row], str]
    key: Callable[[Summary, Row], float | str | None]
    more: Callable[[Summary, Row], str] = lambda summary, row: ""
    first: str = "ascending"
    kind: str = ""


def standing(summary: Summary, row: Row) -> str:
    """Say "best", "tie", or how far behind the best a row is."""
    if row is summary.best:
        return "best"
    if row.gap is None:
        return wording.DASH
    return "tie" if row.tier == 1 else wording.signed(summary.metric, row.gap[0])


def standing_more(summary: Summary, row: Row) -> str:
    """Return the interval of the difference from the best."""
    if row is summary.best or row.gap is None:
        return ""
    return f"{wording.signed(summary.metric, row.gap[1])} to {wording.signed(summary.metric, row.gap[2])}".replace(" ", NBSP)


def seeds(summary: Summary, row: Row) -> str:
    """Return every seed's score."""
    return f"{NBSP}· ".join(wording.score(summary.metric, run.score).rstrip("%") for run in row.runs) if row.runs else wording.DASH


def shots(row: Row) -> str:
    """Say how many examples a baseline was given."""
    known = next((run.shots for run in row.runs if run.shots is not None), None)
    return wording.plural(known, "example") if known else ""


def under_name(summary: Summary, row: Row) -> str:
    """Return what stands below a method's name."""
    if row.baseline:
        return shots(row) or "nothing trained"
    return "recommended" if row is summary.pick else ""


def milliseconds(row: Row, kind: str) -> str:
    """Print a latency."""
    return wording.figures(row.latency(kind), "ms")


def share(summary: Summary, row: Row) -> str:
    """Print the trainable share of the base, if both are known."""
    whole = summary.plan.model.get("parameters")
    return f"{wording.percent(row.trainable, whole)} of base" if row.trainable and whole else ""


COLUMNS = (
    Column("Method", lambda s, r: r.entry.title, lambda s, r: r.entry.title, under_name),
    Column("Score", lambda s, r: wording.score(s.metric, r.score), lambda s, r: r.score,
           lambda s, r: wording.span(s.metric, r.low, r.high) if r.low is not None else "", "descending"),
    Column("Against\nthe best", standing, lambda s, r: r.gap[0] if r.gap else None, standing_more, "descending", "tiecell"),
    Column("Trainable\nparameters", lambda s, r: wording.count(r.trainable), lambda s, r: r.trainable, share),
    Column("Adapter\non disk", lambda s, r: wording.size(r.adapter_bytes), lambda s, r: r.adapter_bytes),
    Column("Peak\nmemory", lambda s, r: wording.size(r.memory), lambda s, r: r.memory),
    Column("Time\na step", lambda s, r: wording.figures(r.step_seconds, "s"), lambda s, r: r.step_seconds),
    Column("Training\ntokens/s", lambda s, r: wording.figures(r.speed), lambda s, r: r.speed, first="descending"),
    Column("Latency\nmerged", lambda s, r: milliseconds(r, "merged"), lambda s, r: r.latency("merged")),
    Column("Latency\nunmerged", lambda s, r: milliseconds(r, "unmerged"), lambda s, r: r.latency("unmerged")),
    Column("Context\npositions", lambda s, r: wording.count(r.positions), lambda s, r: r.positions),
    Column("Learning\nrate", lambda s, r: wording.rate(r.learning_rate), lambda s, r: r.learning_rate),
    Column("Score of\neach seed", seeds, lambda s, r: r.runs[0].score),
)  # fmt: skip


def numbers_section(summary: Summary) -> str:
    """Return the sortable table; empty if nothing has finished."""
    if not summary.rows:
        return ""
    heads = "".join(head(column) for column in COLUMNS)
    body = "\n".join(table_row(summary, row) for row in summary.rows)
    note = (
        "Sort by any heading. Small figures are 95% intervals; “tie” means that the interval of the difference from the best contains 0. "
        "Latency is one forward of 1×128 tokens. A dash means not measured, or not possible."
    )
    table = (
        f'<div class="scroll card" tabindex="0" role="region" aria-label="Table of all numbers, scrolls sideways"><table class="numbers">'
        f"<caption><span>{note}</span></caption><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
        '<p class="sr" id="sorted" aria-live="polite"></p>'
    )
    return section("numbers", "All numbers", "", table)


def head(column: Column) -> str:
    """Return a column's heading, a button that sorts by it."""
    state = ' aria-sort="descending"' if column.title == "Score" else ""
    return f'<th scope="col" data-first="{column.first}"{state}><button type="button">{escaped(column.title)}</button></th>'


def table_row(summary: Summary, row: Row) -> str:
    """Return one row of the page's table."""
    kind = " ".join(name for name, on in (("tie", row in summary.tied), ("pick", row is summary.pick)) if on)
    cells = []
    for number, column in enumerate(COLUMNS):
        tag, scope = ("th", ' scope="row"') if number == 0 else ("td", "")
        key = column.key(summary, row)
        value = "" if key is None else f' data-v="{escaped(str(key))}"'
        name = f' class="{column.kind}"' if column.kind else ""
        dot = f'<i class="dot-fam" style="--fam:var(--fam-{row.entry.family.key})"></i>' if number == 0 else ""
        cells.append(f"<{tag}{scope}{name}{value}>{dot}{escaped(column.text(summary, row))}{small(column.more(summary, row))}</{tag}>")
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def plain_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Return the table as plain text, the headings first, intervals in the cells; methods without a result come last."""
    titles = tuple(column.title.replace("\n", " ") for column in COLUMNS)
    rows = [tuple(plain_cell(summary, row, number) for number in range(len(COLUMNS))) for row in summary.rows]
    done = {row.method for row in summary.rows}
    absent = [method for method in summary.plan.methods if method not in done]
    blank = (wording.DASH,) * (len(COLUMNS) - 1)
    return [titles, *rows, *((entry(method).title, *blank) for method in absent)]


def plain_cell(summary: Summary, row: Row, number: int) -> str:
    """Return a cell's two lines as one."""
    text, more = COLUMNS[number].text(summary, row), COLUMNS[number].more(summary, row)
    return (f"{text} ({more})" if more else text).replace(NBSP, " ")
