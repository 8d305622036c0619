"""A plan as a page: one self-contained file without scripts, the table with a bar of memory for each method, and the advice.

Every string that comes from outside goes through `html.escape` once, where it is put into markup.
"""

from collections.abc import Sequence
from html import escape

from graft.plan.advice import evidence, spoken, why_not
from graft.plan.counts import size
from graft.plan.memory import PARTS, Memory
from graft.plan.plan import Entry, Plan
from graft.plan.show import NUMBERS, SPARED, assumptions, cells, columns, commands, headline, scale_of

COLOURS = ("#4269d0", "#3ca951", "#efb118", "#a463f2", "#6cc5b0", "#ff725c", "#9498a0")
"""Of the parts, in their order."""
SPARE = {name for names in SPARED.values() for name in names}
KINDS = dict.fromkeys(NUMBERS, "n") | {"with": "wide", "bar": "least"}
STYLE = """
:root { color-scheme: light dark; --ink: #1c1f1d; --paper: #f7f8f6; --muted: #5f6661; --line: #d9ddd8; --track: #e6e9e5; } @media
(prefers-color-scheme: dark) { :root { --ink: #e8ebe7; --paper: #121513; --muted: #9aa39c; --line: #2c322e; --track: #242a26; } } body {
font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { margin: .25rem 0; } .muted { color:
var(--muted); } .scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-variant-numeric:
tabular-nums; } th, td { text-align: left; padding: .35rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap; } th { color:
var(--muted); font-weight: 500; } .n { text-align: right; } td.wide, td.least { white-space: normal; } td.wide { min-width: 9rem; } tr.best
td:first-child { font-weight: 700; } .bar { display: flex; width: 11rem; height: .85rem; background: var(--track); border-radius: 3px;
overflow: hidden; } .bar i { display: block; } .key { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; color:
var(--muted); } .key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem; vertical-align: -1px;
} code { display: block; padding: .6rem .8rem; margin: .5rem 0; background: var(--track); border-radius: 4px; white-space: pre-wrap; }
@media (max-width: 48rem) { .spare { display: none; } .bar { width: 7rem; } }
"""


def page(plan: Plan, asked: str = "") -> str:
    """The whole page as HTML; `asked` is a method of which to say why it was not advised."""
    scale = scale_of(plan)
    shown = columns(plan)
    rows = "".join(row(each, shown, scale, each.counted.name.split()[0] in plan.advice.best) for each in plan.entries)
    heads = "".join(f'<th class="{kind(name)}">{"of the memory" if name == "bar" else name}</th>' for name in shown)
    key = "".join(f'<li><i style="background:{colour}"></i>{part}</li>' for part, colour in zip(PARTS, COLOURS, strict=True))
    train = "".join(f"<code>{escape(line)}</code>" for line in commands(plan))
    why = f"<h2>Why not {escape(asked)}?</h2>{lines(evidence(why_not(plan.situation, asked)))}" if asked else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(headline(plan))}</title><style>{STYLE}</style></head><body>
<h1>{escape(headline(plan))}</h1><p class="muted">{escape(assumptions(plan))}</p>
<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div><ul class="key">{key}</ul>
<h2>{escape(spoken(plan.advice))}</h2>{lines(evidence(plan.advice.reasons))}
{lines([f"But: {line}" for line in evidence(plan.advice.caveats)])}{train}{why}
</body></html>
"""


def kind(name: str) -> str:
    """The classes of a column: how it is set, and whether a narrow window leaves it out."""
    return f"{KINDS.get(name, '')}{' spare' if name in SPARE else ''}".strip()


def row(each: Entry, shown: Sequence[str], scale: int, best: bool) -> str:
    """One method's row, of the columns that are shown."""
    values = {name: escape(value) for name, value in cells(each).items()}
    values["bar"] = bar(each.choice.memory, scale) if each.choice else values["bar"] or escape(each.counted.refused)
    body = "".join(f'<td class="{kind(name)}">{values[name]}</td>' for name in shown)
    return f'<tr class="{"best" if best else ""}">{body}</tr>'


def bar(memory: Memory, scale: int) -> str:
    """A bar whose whole width is `scale` bytes, one colour a part, and what it holds to read aloud."""
    parts = [(part, memory.parts[part], colour) for part, colour in zip(PARTS, COLOURS, strict=True) if memory.parts[part]]
    said = ", ".join(f"{part} {size(held)}" for part, held, _ in parts)
    pieces = "".join(f'<i style="width:{100 * held / scale:.2f}%;background:{colour}"></i>' for _, held, colour in parts)
    return f'<div class="bar" role="img" title="{said}" aria-label="{said}">{pieces}</div>'


def lines(found: list[str]) -> str:
    """Sentences, one a paragraph."""
    return "".join(f"<p>{escape(line)}</p>" for line in found)
