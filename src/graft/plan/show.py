"""A plan for the terminal: a table with a bar of memory for each method, the command that trains so, and the advice."""

import math
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graft.plan.advice import Situation, evidence, spoken, why_not
from graft.plan.counts import BYTES, size
from graft.plan.memory import PARTS, Memory
from graft.plan.plan import Entry, Plan
from graft.plan.search import EPOCHS, GOAL, room

COLOURS = {
    "weights": "blue",
    "adapter": "green",
    "gradients": "yellow",
    "optimizer": "magenta",
    "activations": "cyan",
    "loss": "red",
    "workspace": "bright_black",
}
COLUMNS = ("method", "trained", "of base", "adapter", "one more", "inference", "peak", "bar", "batch", "tokens/s", "time", "with")
NUMBERS = ("trained", "of base", "adapter", "one more", "peak", "batch", "tokens/s", "time")
SPARED = {130: ("adapter", "inference", "tokens/s"), 165: ("of base", "one more")}
"""What a terminal of fewer columns leaves out."""
WIDTH = 24  # cells of a bar
FULL = "█"


def bar(memory: Memory, scale: int, width: int = WIDTH) -> Text:
    """A bar whose whole width is `scale` bytes, one colour a part."""
    made, filled, done = Text(), 0, 0
    for part in PARTS:
        done += memory.parts[part]
        upto = round(width * done / scale)
        made.append(FULL * (upto - filled), COLOURS[part])
        filled = max(filled, upto)
    return made + Text("·" * (width - filled), "bright_black")


def show(plan: Plan, console: Console, asked: str = "") -> None:
    """Print a plan; `asked` is a method of which to say why it was not advised."""
    for part in renderables(plan, console.width, asked):
        console.print(part, highlight=False)
    for line in commands(plan):
        console.print(Text(f"\n{line}", "green"), highlight=False, soft_wrap=True)  # a line that is broken cannot be pasted


def renderables(plan: Plan, width: int, asked: str = "") -> Iterator[RenderableType]:
    """What is printed, part by part, in a terminal of so many columns."""
    yield Text(headline(plan), "bold")
    yield Text(assumptions(plan), "bright_black")
    yield table(plan, width)
    yield Text("  ").join(Text.assemble((FULL, COLOURS[part]), f" {part}") for part in PARTS)
    yield Text(f"\n{spoken(plan.advice)}", "bold")
    yield from (indented(line) for line in evidence(plan.advice.reasons))
    yield from (indented(f"But: {line}") for line in evidence(plan.advice.caveats))
    yield from refusals(plan)
    if asked:
        yield from answer(plan.situation, asked)


def indented(line: str) -> Padding:
    """A sentence, all of whose lines are indented."""
    return Padding(Text(line), (0, 0, 0, 2), expand=False)


def headline(plan: Plan) -> str:
    """The model and the machine."""
    where = f" on {plan.card.name}" if plan.card else " on a CPU" if plan.cpu else ""
    limit = f", {plan.memory / 1e9:g} GB of which {room(plan.memory, plan.cpu) / 1e9:.1f} for tensors" if plan.memory else ""
    return f"{plan.model}: {plan.parameters:,} parameters{where}{limit}"


def assumptions(plan: Plan) -> str:
    """What the numbers rest on."""
    rows = plan.rows
    said = f"{rows.count:,} rows" if rows.count else "Rows not known"
    if rows.source:
        said += f" of {rows.mean:.0f} tokens, the longest {rows.longest} ({rows.source})"
    else:
        said += f", taken as {rows.longest} tokens each"
    held = f"a base in {str(plan.dtype).removeprefix('torch.')} {'on a CPU' if plan.cpu else 'on a GPU'}"
    known = "" if plan.card or plan.cpu else " (--gpu NAME also says how long it takes, --gpu cpu plans for a CPU)"
    if plan.card and not plan.card.measured:
        known = f". Times on {plan.card.name} are scaled from an H100's by the vendor's figures"
    return f"{said}; updates of {GOAL} rows, {EPOCHS} epochs, {held}{known}."


def table(plan: Plan, width: int) -> Table:
    """One row a method; those of COLUMNS that say something and find room."""
    made = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    left_out = {name for least, names in SPARED.items() if width < least for name in names}
    shown = [name for name in columns(plan) if name not in left_out]
    cells_of_bar = WIDTH if "inference" in shown else WIDTH // 2 if width >= 100 else WIDTH // 3
    for name in shown:
        number, least = name in NUMBERS, len("checkpointing") if name == "with" else None
        made.add_column("" if name == "bar" else name, justify="right" if number else "left", no_wrap=number, min_width=least)
    scale = scale_of(plan)
    for each in plan.entries:
        values = cells(each)
        values["bar"] = bar(each.choice.memory, scale, cells_of_bar) if each.choice else Text(values["bar"], "red")
        made.add_row(*(values[name] for name in shown))
    return made


def columns(plan: Plan) -> list[str]:
    """Those of COLUMNS that say something here."""
    found = [cells(each) for each in plan.entries]
    return [name for name in COLUMNS if name == "bar" or any(values[name] for values in found)]


def scale_of(plan: Plan) -> int:
    """Bytes that a whole bar stands for: what there is room for, or else the largest peak."""
    peaks = [each.choice.memory.peak for each in plan.entries if each.choice]
    return room(plan.memory, plan.cpu) if plan.memory else max(peaks, default=1)


def cells(each: Entry) -> dict[str, Any]:
    """One method's row, by column; where the bar would be, what is needed instead."""
    one, choice = each.counted, each.choice
    found: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"method": one.name}
    if one.served is None:
        return found | {"inference": "no place"}
    cost = "merges" if one.merges else f"{one.positions} positions" if one.positions else one.served.latency
    found |= {"trained": f"{one.trained:,}", "of base": f"{one.share:.3%}", "inference": cost}
    found |= {"adapter": size(one.stored * BYTES), "one more": size(one.served.bytes) if one.served.serves else "a model"}
    if choice is None:
        return found | {"bar": needs(each)}
    setup = choice.setup
    return found | {
        "peak": f"{choice.memory.peak / 1e9:.1f} GB",
        "batch": f"{setup.batch}" + (f"×{setup.accum}" if setup.accum > 1 else ""),
        "tokens/s": f"{each.tokens_per_second:,.0f}" if each.tokens_per_second else "",
        "time": duration(each.hours) if each.hours else "",
        "with": ", ".join([*(["checkpointing"] if setup.checkpointing else []), *choice.given_up]),
    }


def needs(each: Entry) -> str:
    """The smallest machine that trains a method which does not fit, to read; rounded up, so that it is enough."""
    least = math.ceil(each.least / 1e8) / 10
    return f"needs {least:g} GB" + (f" ({each.card.name})" if each.card else "")


def duration(hours: float) -> str:
    """Hours, to read: minutes below two hours, days from two days on."""
    if hours < 2:
        return f"{max(60 * hours, 1):.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def commands(plan: Plan) -> list[str]:
    """How to train what is advised: as the method starts, or with the largest rank that fits without giving anything up."""
    fit = [each for each in plan.entries if each.command]
    whole = [each for each in fit if each.choice and not each.choice.given_up]
    ordered = [*reversed(fit), *whole] if plan.advice.largest else reversed(fit)
    first = {each.counted.name.split()[0]: each.command for each in ordered}
    return [first[name] for name in plan.advice.best if name in first]


def refusals(plan: Plan) -> Iterator[Text]:
    """Why a method has no place in the model, once for each reason."""
    said = dict.fromkeys(f"{each.counted.name}: {each.counted.refused}" for each in plan.entries if each.counted.refused)
    yield from (Text(line, "bright_black") for line in said)


def answer(situation: Situation, method: str) -> Iterator[RenderableType]:
    """Why not a method."""
    found = evidence(why_not(situation, method))
    yield Text(f"\nWhy not {method}?", "bold")
    yield from (indented(line) for line in found or [f"{method} is what is advised."])
