"""The report of a comparison, made from its records alone: report.html, report.md and plots/*.png. Nothing is ever run again."""

from pathlib import Path

from graft.compare import records
from graft.compare.records import Records
from graft.compare.report import canvas
from graft.compare.report.canvas import Plot
from graft.compare.report.numbers import plain_rows
from graft.compare.report.page import page
from graft.compare.report.plots import all_plots
from graft.compare.report.summary import Summary, summarise
from graft.compare.report.verdict import headline, reasons
from graft.files import atomic_write

PNG_WIDTH, PNG_WIDE = 640, 960


def write_report(run_dir: Path) -> Path:
    """Write report.html, report.md and plots/*.png (light theme, twice the CSS size) into a run's folder from its records.

    Works on unfinished and partly failed comparisons. Returns the path of report.html; raises DataError where there are no
    readable records, GraftError without matplotlib.
    """
    summary = summarise(records.read(run_dir))
    plots = all_plots(summary)
    for plot in plots:
        width = PNG_WIDTH if plot.name.startswith("score-") else PNG_WIDE
        atomic_write(run_dir / "plots" / f"{plot.name}.png", canvas.png(plot.draw, width, plot.heights[0] + 30))
    atomic_write(run_dir / "report.md", markdown(summary, plots))
    atomic_write(run_dir / "report.html", page(summary, plots))
    return run_dir / "report.html"


def summary_table(found: Records) -> list[tuple[str, ...]]:
    """Return the table of a comparison as plain text for a terminal: the headings first, then a row a method, best first."""
    return plain_rows(summarise(found))


def recommendation(found: Records) -> str:
    """Return the recommendation as one sentence."""
    return ": ".join(headline(summarise(found)))


def markdown(summary: Summary, plots: list[Plot]) -> str:
    """Return the report as Markdown: the recommendation, its reasons, the table, the plots, what is missing, the command."""
    what, why = headline(summary)
    name, note = str(summary.plan.model.get("name", "a model")), summary.plan.model.get("note")
    out = [f"# {plain(what)}: {plain(why)}", ""]
    out += [f"Compared on {plain(name)}{f' ({plain(str(note))})' if note else ''}.", ""]
    if summary.plan.demo:
        out += [
            "**This is a demo**: one seed, default learning rates, few rows. The full comparison:",
            "",
            *code(summary.plan.full_command),
            "",
        ]
    out += [f"- **{label}**: {plain(text)}" for label, text in reasons(summary)] + [""]
    titles, *rows = plain_rows(summary)
    out += [line(titles), "|---|" + "---:|" * (len(titles) - 1), *(line(row) for row in rows), ""]
    out += [f"![{plain(plot.label)}](plots/{plot.name}.png)\n" for plot in plots]
    if summary.missing:
        out += ["Failed or not run:", "", *(f"- {plain(each.what)}: {each.status}, {plain(each.reason)}" for each in summary.missing), ""]
    if summary.plan.machine:
        out += [
            f"Machine: {plain(summary.plan.machine)}. Versions: {plain(', '.join(f'{k} {v}' for k, v in summary.plan.versions.items()))}.",
            "",
        ]
    return "\n".join(out + (["Command:", "", *code(summary.plan.command), ""] if summary.plan.command else [])).rstrip() + "\n"


def line(cells: tuple[str, ...]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    one = " ".join(text.split())
    for mark in "\\`*_|[]":
        one = one.replace(mark, f"\\{mark}")
    return one.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> list[str]:
    """Return text as an indented code block, which nothing inside it can end."""
    return [f"    {row}" for row in text.splitlines()]
