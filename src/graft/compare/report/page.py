"""The HTML page of a report: one self-contained file, built from a summary, page.html, page.css and page.js.

Every string that comes from records goes through `canvas.escaped` exactly once, in the function that puts it into markup. The
page's own script is named by its hash in a content security policy, which forbids any other script and all network traffic.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from graft import theme
from graft.compare.report import canvas
from graft.compare.report.account import demo_banner, lede, missing_section, setup_section
from graft.compare.report.blocks import LEGEND, block_svg, roles_text
from graft.compare.report.canvas import Plot, escaped
from graft.compare.report.catalogue import FAMILIES
from graft.compare.report.forest import forest_section
from graft.compare.report.markup import section, shape
from graft.compare.report.numbers import numbers_section
from graft.compare.report.summary import Row, Summary
from graft.compare.report.verdict import headline, reasons

WIDE, NARROW, FULL = 558, 344, 1178  # what the cards leave for a drawing


def page(summary: Summary, plots: Sequence[Plot]) -> str:
    """Return the whole report as HTML text."""
    what, why = headline(summary)
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(asset("page.html")).substitute(
        script_hash=f"sha256-{digest}",
        version=escaped(str(summary.plan.versions.get("graft", ""))),
        title=escaped(f"{what}: methods compared on {summary.plan.model.get('name', 'a model')}"),
        css=theme.CSS + asset("page.css"),
        js=script,
        when=escaped(summary.plan.started[:16].replace("T", " ")),
        demo=demo_banner(summary.plan),
        what=escaped(what),
        why=escaped(why),
        lede=lede(summary),
        reasons=reasons_list(summary),
        forest=forest_section(summary),
        table=numbers_section(summary),
        costs=costs_section(summary, [plot for plot in plots if plot.name.startswith("score-")]),
        training=training_section([plot for plot in plots if not plot.name.startswith("score-")]),
        blocks=blocks_section(summary),
        missing=missing_section(summary),
        setup=setup_section(summary),
    )


def asset(name: str) -> str:
    """Read one of the page's own files."""
    return files("graft.compare.report").joinpath(name).read_text(encoding="utf-8")


def reasons_list(summary: Summary) -> str:
    """Return the reasons of the recommendation as a list."""
    items = "".join(f"<div><dt>{escaped(label)}</dt><dd>{escaped(text)}</dd></div>" for label, text in reasons(summary))
    return f'<dl class="reasons">{items}</dl>' if items else ""


def figure(plot: Plot, wide: bool = False) -> str:
    """Return a plot twice, for wide and for narrow screens; CSS shows one of them."""
    label = plot.label
    desk = canvas.svg(plot.draw, plot.name, FULL if wide else WIDE, plot.heights[0], label)
    phone = canvas.svg(plot.draw, plot.name, NARROW, plot.heights[1], label)
    words = f"<figcaption><h3>{escaped(plot.title)}</h3><p>{escaped(plot.caption)}</p></figcaption>"
    return f'<figure class="card{" wide" if wide else ""}">{words}<div class="desk">{desk}</div><div class="phone">{phone}</div></figure>'


def costs_section(summary: Summary, plots: Sequence[Plot]) -> str:
    """Return the scatter plots under a key of the families that occur."""
    if not plots:
        return ""
    used = {row.entry.family for row in summary.tuned if row.score is not None}
    key = "".join(f"<li>{shape(family)}{escaped(family.title)}</li>" for family in FAMILIES if family in used)
    wide = len(plots) % 2 == 1
    body = "".join(figure(plot, wide and number == 0) for number, plot in enumerate(plots))
    intro = "What each method’s score costs: in parameters, in memory while training, in time when it runs. Up and to the left is better."
    if summary.metric == "loss":
        intro = intro.replace("Up and", "Down and")
    return section("costs", "Score against cost", intro, f'<ul class="key">{key}</ul><div class="plots">{body}</div>')


def training_section(plots: Sequence[Plot]) -> str:
    """Return the learning curves and the learning-rate search."""
    body = "".join(figure(plot, wide=True) for plot in plots)
    return section("training", "How training went", "", f'<div class="plots">{body}</div>' if body else "")


def blocks_section(summary: Summary) -> str:
    """Return a drawing of one transformer block for each tuned method."""
    cards = "".join(card(row) for row in summary.tuned)
    legend = "".join(f"<li>{drawing}{escaped(words)}</li>" for drawing, words in LEGEND)
    intro = (
        "A language model is a stack of blocks like these, read from top to bottom. What a method trains is in colour; the rest is frozen."
    )
    return section(
        "blocks", "Where each method acts", intro, f'<ul class="legend">{legend}</ul><div class="blocks">{cards}</div>' if cards else ""
    )


def card(row: Row) -> str:
    """Return one method's drawing and words."""
    merge = {
        True: "Merges into the model’s weights: free when it runs.",
        False: "Cannot be merged: it runs beside the model.",
        None: "",
    }[row.mergeable]
    where = roles_text(row)
    lines = f"<p>{escaped(row.entry.sentence)}</p>" + (f'<p class="where">Here: {escaped(where)}.</p>' if where else "")
    lines += f'<p class="merge">{escaped(merge)}</p>' if merge else ""
    body = f"<h3>{escaped(row.entry.title)}</h3>{block_svg(row)}<figcaption>{lines}</figcaption>"
    return f'<figure class="block card" style="--fam:var(--fam-{row.entry.family.key})">{body}</figure>'
