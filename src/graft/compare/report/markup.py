"""Pieces of HTML that several sections of the page are built from. Arguments called `intro`, `body`, `cell` are markup already."""

from graft.compare.report.canvas import escaped
from graft.compare.report.catalogue import Family

SHAPES = {
    "o": '<circle cx="6" cy="6" r="5"/>',
    "s": '<path d="M1.5 1.5h9v9h-9Z"/>',
    "^": '<path d="M6 1L11.5 11H.5Z"/>',
    "D": '<path d="M6 0L12 6L6 12L0 6Z"/>',
    "v": '<path d="M6 11L.5 1h11Z"/>',
    "P": '<path d="M4 0h4v4h4v4h-4v4h-4v-4h-4v-4h4Z"/>',
}


def section(name: str, title: str, intro: str, body: str) -> str:
    """Wrap markup in a titled section; empty when there is no body."""
    if not body:
        return ""
    head = f'<h2 id="{name}-title">{escaped(title)}</h2>' + (f'<p class="intro">{intro}</p>' if intro else "")
    return f'<section id="{name}" aria-labelledby="{name}-title">\n{head}\n{body}\n</section>'


def facts(pairs: list[tuple[str, str]]) -> str:
    """Return a list of facts; each value is markup, and an empty one is left out."""
    body = "".join(f"<dt>{escaped(label)}</dt><dd>{value}</dd>" for label, value in pairs if value)
    return f'<dl class="facts">{body}</dl>' if body else ""


def shape(family: Family) -> str:
    """Return a family's marker in its colour."""
    return f'<svg class="shape" style="--fam:var(--fam-{family.key})" viewBox="0 0 12 12" aria-hidden="true">{SHAPES[family.marker]}</svg>'


def small(text: str) -> str:
    """Return escaped text as a second, smaller line; empty for no text."""
    return f"<small>{escaped(text)}</small>" if text else ""
