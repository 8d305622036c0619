"""Compare: every method on one base and one data set, and the report of it."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graft import demo
from graft.compare import records
from graft.compare.report import recommendation, summary_table, write_report
from graft.compare.run import compare
from graft.compare.settings import CompareConfig
from graft.errors import TrainingError

__all__ = ["CompareConfig", "compare", "demo_and_report", "run_and_report", "write_report"]

SHOWN = 4  # columns of the report's table that a terminal has room for
DEMO_METHODS = ("lora", "bottleneck", "prefix", "ia3", "last-k")


def run_and_report(config: CompareConfig, console: Console, out: Console) -> Path:
    """Run (or go on with) a comparison and write its report; returns the page's path."""
    found = records.read(compare(config, console=console))
    page = write_report(Path(config.output_dir))
    out.print(ending(found), highlight=False)
    out.print(f"\n{recommendation(found)}", highlight=False, markup=False, style="bold")
    out.print(f"Report: {page}", highlight=False)
    if not any(run.role == "final" and run.status == "done" for run in found.runs):
        raise TrainingError(f"no method finished: {page} says why")
    return page


def ending(found: records.Records) -> Table:
    """The first columns of the report's table, for the terminal."""
    (titles, *rows), made = summary_table(found), Table(box=None, header_style="bold", pad_edge=False)
    for title in titles[:SHOWN]:
        made.add_column(title, justify="right" if made.columns else "left")
    for row in rows:
        made.add_row(*(escape(cell.replace(" (", "\n(")) for cell in row[:SHOWN]))
    return made


def demo_and_report(folder: Path, console: Console, out: Console) -> Path:
    """The demo: five methods of different families on generated orders, small enough for two cores and ten minutes."""
    train, test = demo.write(folder / "data")
    full = (
        f"graft compare --model smollm2 --data {train} --eval-data {test} --methods all "
        f"--trials 3 --seeds 3 --max-steps 200 --output-dir {folder}-full"
    )
    config = CompareConfig(
        model="smollm2", data=str(train), eval_data=str(test), output_dir=str(folder), methods=DEMO_METHODS, trials=1, seeds=1,
        max_steps=28, eval_limit=40, batch_size=16, shots=(4,), demo=True, command="make demo", full_command=full,
    )  # fmt: skip
    return run_and_report(config, console, out)
