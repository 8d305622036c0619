"""How far a training run is: a bar on a terminal, about ten plain lines elsewhere (a log file, a CI job)."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_LINES = 10


class Steps:
    """`with Steps(total, label) as shown: shown.update(step, loss, tokens)`; `enabled=False` shows nothing.

    `tokens` is the number read so far; the rate is over the whole time since the start, evaluation included, and `before`, the seconds
    that steps took which are done already.
    """

    def __init__(self, total: int, label: str, enabled: bool = True, console: Console | None = None, before: float = 0.0) -> None:
        self.total = total
        self.label = label
        self.enabled = enabled
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self.before = before
        self._start = time.perf_counter() - before

    def __enter__(self) -> "Steps":
        self._start = time.perf_counter() - self.before
        if self.enabled and self.console.is_terminal:
            self._bar = _bar(self.console)
            self._task = self._bar.add_task(self.label, total=self.total, loss="", rate="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Show a line, if there is anything to say."""
        if self.enabled and text:
            self.console.print(text, highlight=False, soft_wrap=True)

    def update(self, step: int, loss: float, tokens: int) -> None:
        """Show that `step` steps are done, with the last training loss (nats a token)."""
        seconds = time.perf_counter() - self._start
        rate = tokens / max(seconds, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"loss {loss:.4g}", rate=f"{rate:,.0f} tokens/s")
        elif self.enabled and (step == self.total or step % max(1, self.total // PLAIN_LINES) == 0):
            left = seconds / step * (self.total - step)
            text = f"{self.label}  step {step}/{self.total}  loss {loss:.4g}  {rate:,.0f} tokens/s  {duration(left)} left"
            self.console.print(text, highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    """The bar: label, steps, loss, tokens/s, time left; it disappears when the run is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 7 min 5 s, 2 h 3 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
