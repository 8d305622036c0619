"""The paper that plots are drawn on: themes, sizes, and the two ways out of matplotlib, SVG for the page and PNG.

One drawing serves both. For the page it is drawn with sentinel colours (MARKS), which are then replaced by CSS variables, so
that the page's light and dark themes recolour the plot; text stays text, in the page's own font. Output is the same, byte for
byte, for the same input: no dates, no random ids.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graft.compare import wording
from graft.errors import GraftError

FONT = 11.5
RC = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": FONT, "svg.fonttype": "none",
    "axes.linewidth": 0.9, "lines.linewidth": 1.7, "figure.dpi": 72, "axes.unicode_minus": True, "text.usetex": False,
    "path.simplify": False, "axes.formatter.use_mathtext": False,
}  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """Colours by role; `families` by a family's key. `paper` lies under the plot, None for transparent."""

    ink: str
    muted: str
    line: str
    halo: str
    families: dict[str, str]
    paper: str | None = None


LIGHT = Theme(
    ink="#1c1f1d", muted="#626a65", line="#dfe3df", halo="#ffffff", paper="#ffffff",
    families={"rank": "#0067a8", "neck": "#b87900", "virtual": "#b8508f", "scale": "#c64a12", "select": "#4f6475", "other": "#626a65"},
)  # fmt: skip
# Sentinels: colours that stand for a CSS variable until the SVG is finished. No two alike, none used otherwise.
MARKS = Theme(
    ink="#fe0101", muted="#fe0102", line="#fe0103", halo="#fe0104",
    families={key: f"#fe02{number:02x}" for number, key in enumerate(LIGHT.families)},
)  # fmt: skip
VARIABLES = {MARKS.ink: "--ink", MARKS.muted: "--muted", MARKS.line: "--line", MARKS.halo: "--card"} | {
    colour: f"--fam-{key}" for key, colour in MARKS.families.items()
}


@dataclass(frozen=True)
class Canvas:
    """What a drawing function is given: a theme, the size in CSS pixels, and whether it must carry its own title."""

    theme: Theme
    width: float
    height: float
    titled: bool = False

    @property
    def narrow(self) -> bool:
        """Whether this is the drawing for a phone."""
        return self.width < 450


Drawing = Callable[[Canvas], Any]


@dataclass(frozen=True)
class Plot:
    """A drawing with the words around it; height in CSS pixels for the wide and the narrow drawing."""

    name: str
    title: str
    caption: str
    label: str
    draw: Drawing
    heights: tuple[float, float] = (400, 380)


def matplotlib() -> Any:
    """Import matplotlib late: it is needed for plots only, and is in an extra."""
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise GraftError("A report's plots need matplotlib: pip install 'graft-peft[compare]'.") from error
    return matplotlib


def blank(canvas: Canvas, **grid: Any) -> tuple[Any, Any]:
    """Return a figure of the canvas's size and its axes (an array of them if `grid` asks for rows and columns)."""
    library = matplotlib()
    figure = library.figure.Figure(figsize=(canvas.width / 72, canvas.height / 72), dpi=72)
    library.backends.backend_agg.FigureCanvasAgg(figure)
    figure.set_facecolor(canvas.theme.paper or "none")
    axes = figure.subplots(**grid)
    for each in axes.ravel() if grid else [axes]:
        style(each, canvas.theme)
    return figure, axes


def style(axes: Any, theme: Theme) -> None:
    """Quiet axes: no box, a faint horizontal grid behind the data, muted ticks."""
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.line)
    axes.grid(axis="y", color=theme.line, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=theme.muted, labelcolor=theme.muted, labelsize=FONT - 1)
    axes.tick_params(axis="x", which="major", length=4, color=theme.line)


def score_label(metric: str) -> str:
    """Name the vertical axis."""
    return f"{wording.metric_name(metric)}{', %' if wording.is_share(metric) else ''}"


def finish(canvas: Canvas, figure: Any, axes: Any, upper: str, lower: str, title: str, right: float = 0.985) -> None:
    """Write the axes' names (the vertical one on top, to be read without turning the head) and fix the layout."""
    height = canvas.height
    up = 1 - (60 if canvas.titled else 30) / height
    figure.subplots_adjust(left=46 / canvas.width, right=right, bottom=50 / height, top=up)
    figure.text(
        8 / canvas.width, up + 12 / height, upper, color=canvas.theme.muted, ha="left", va="bottom", fontsize=FONT - 0.5, parse_math=False
    )
    axes.set_xlabel(lower, color=canvas.theme.muted, fontsize=FONT - 0.5, labelpad=8, parse_math=False)
    if canvas.titled:
        at = 1 - 10 / height
        figure.text(
            8 / canvas.width, at, title, color=canvas.theme.ink, ha="left", va="top", fontsize=FONT + 3, weight="bold", parse_math=False
        )


def short(name: str) -> str:
    """Cut a very long name."""
    return name if len(name) <= 16 else name[:15] + "…"


def svg(draw: Drawing, name: str, width: float, height: float, label: str) -> str:
    """Draw for the page: one <svg> element, recoloured by CSS variables, with `label` as its accessible name (plain text)."""
    library = matplotlib()
    buffer = io.StringIO()
    with library.rc_context({**RC, "svg.hashsalt": f"graft {name} {width:g}"}):
        figure = draw(Canvas(MARKS, width, height))
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(buffer.getvalue(), label)


def png(draw: Drawing, width: float, height: float) -> bytes:
    """Draw in the light theme as a PNG of twice the size in CSS pixels."""
    buffer = io.BytesIO()
    with matplotlib().rc_context(RC):
        figure = draw(Canvas(LIGHT, width, height, titled=True))
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def inline(text: str, label: str) -> str:
    """Turn a matplotlib SVG file into an element for an HTML page."""
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.S)
    body = re.sub(r'(<g|<path|<rect) id="[a-zA-Z][a-zA-Z0-9]*(?:\.[a-z]+)?_[\d.]+(?:_\d+)?"', r"\1", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"font: ([\d.]+px|[a-z0-9 ]+ [\d.]+px) [^;\"]+", r"font: \1 var(--sans)", body)
    body = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", body)
    box = re.search(r'viewBox="[^"]+"', body)
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{escaped(label)}">'
    return re.sub(r"\n\s*", "\n", head + body[body.index(">") + 1 :]).strip()


def escaped(text: str) -> str:
    """Escape text for HTML, quotes included, control characters removed."""
    clean = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;").replace("'", "&#39;")
