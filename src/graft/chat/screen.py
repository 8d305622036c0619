"""How a chat looks in a terminal: answers as they come, alone or side by side, and what they cost.

What a model or a server writes is shown as text: control characters, which could move the cursor or change a terminal's settings, are
left out.
"""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from graft.chat.backend import Answer, Model, Stream, read_all

ENDS = {"length": "cut at max_tokens", "cancelled": "stopped"}
FRAMES = 12  # pictures a second of two answers that grow


def plain(text: str) -> str:
    """Text without control characters, but for line ends and tabs."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def span(seconds: float) -> str:
    """A time to wait, in words."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def cost(answer: Answer) -> str:
    """Tokens, tokens a second, time to the first, and why it ended."""
    parts = [f"{answer.tokens} token{'' if answer.tokens == 1 else 's'}"]
    if answer.rate is not None:
        parts.append(f"{answer.rate:.{1 if answer.rate < 10 else 0}f} tokens/s")
    if answer.tokens:
        parts.append(f"first token after {span(answer.first)}")
    return ", ".join([*parts, *([ENDS[answer.reason]] if answer.reason in ENDS else [])])


def complain(console: Console, sentence: str) -> None:
    """Print an error."""
    console.print(Text(plain(sentence), style="yellow"))


def show_one(console: Console, answer: Answer, stream: Stream) -> None:
    """Print an answer as it comes; Ctrl-C stops it."""
    try:
        for _, piece in read_all([answer], [stream]):
            console.print(Text(plain(piece.text)), end="", soft_wrap=True)
    except KeyboardInterrupt:
        answer.reason = "cancelled"
    if answer.tokens and not answer.text.endswith("\n"):
        console.print()
    if answer.error:
        complain(console, answer.error)
    else:
        console.print(Text(cost(answer), style="dim"))


def show_both(console: Console, answers: Sequence[Answer], streams: Sequence[Stream]) -> None:
    """Print answers side by side as they come; Ctrl-C stops them."""
    with Live(columns(answers), console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        drawn = 0.0
        try:
            for number, _ in read_all(answers, streams):
                if answers[number].last - drawn > 1 / FRAMES or answers[number].last < drawn:
                    drawn = answers[number].last
                    live.update(columns(answers), refresh=console.is_terminal)
        except KeyboardInterrupt:
            for answer in answers:
                answer.reason = answer.reason or "cancelled"
        live.update(columns(answers), refresh=True)


def columns(answers: Sequence[Answer]) -> RenderableType:
    """Answers in panels beside one another."""
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for _ in answers:
        grid.add_column(ratio=1)
    grid.add_row(*(panel(answer) for answer in answers))
    return grid


def panel(answer: Answer) -> Panel:
    """One answer with its model's name and its cost."""
    body = Text(plain(answer.text))
    if answer.error:
        body.append(("\n" if answer.text else "") + plain(answer.error), style="yellow")
    title = Text(plain(answer.model), style="bold green")
    return Panel(Group(body, Text(cost(answer), style="dim")), title=title, title_align="left", border_style="dim")


def show_models(console: Console, models: Sequence[Model], current: str) -> None:
    """Print all models with what is known of them; the current one has a mark."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for title in ("", "name", "methods", "virtual tokens", "size"):
        table.add_column(title, justify="right" if title in ("virtual tokens", "size") else "left")
    for model in models:
        methods = "base" if model.is_base else plain(model.methods) or "not read yet"
        numbers = (str(model.virtual or ""), f"{model.bytes / 1e6:.1f} MB" if model.bytes else "")
        mark = Text("•" if model.name == current else "", style="green")
        table.add_row(mark, Text(plain(model.name), style="bold" if model.name == current else ""), methods, *numbers)
    console.print(table)
