"""Write the tables and plots of docs/performance.md from the results that lie in benchmarks/results/.

    python benchmarks/train_report.py

Between `<!-- NAME: made by benchmarks/train_report.py -->` and `<!-- end -->` stands what is made; all else on the page is written by hand.
Results of cards are read from results/train_step-*/*.jsonl (one kind of card, the folder that sorts last, but `-cpu`), those of CPUs from
results/train_step-cpu/*.jsonl, curves from results/loss_curves*/*.jsonl.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from steps import curve_plots
from steps.agreement import table as curves
from steps.plots import AXES, plotted
from steps.pool import Fields, lines_of
from steps.results import machine, measured
from steps.tables import TABLES, cold

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results"
PLOTS = PAGE.parent / "performance"
MARK = re.compile(r"(<!-- ([\w-]+): made by benchmarks/train_report\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def read() -> tuple[list[Fields], list[Fields], list[Fields]]:
    """The lines of cards, of CPUs, and of curves."""
    folders = sorted(folder for folder in RESULTS.glob("train_step-*") if folder.name != "train_step-cpu")
    cards = lines_of(sorted(folders[-1].glob("*.jsonl"))) if folders else []
    return cards, lines_of(sorted((RESULTS / "train_step-cpu").glob("*.jsonl"))), lines_of(sorted(RESULTS.glob("loss_curves*/*.jsonl")))


def sections(cards: Sequence[Fields], cpus: Sequence[Fields], runs: Sequence[Fields]) -> dict[str, list[str]]:
    """What is made, by name."""
    results = measured(cards) | measured(cpus)
    made = {name: table(results) for name, table in TABLES.items()}
    made |= {
        "machine": [machine(cards)],
        "cpu-machine": [machine(cpus)],
        "cold": cold(cards),
        "curves": curves(runs) if runs else ["Not measured yet."],
    }
    words = {name: f"Time and peak memory to the frozen limit, against {label}" for name, (label, _) in AXES.items()}
    words["curves"] = "Training loss of every method, the fast way and the plain one"
    return made | {f"{name}-plot": [f"![{words[name]}](performance/{name}.png)" if drawn else "–"]
                   for name, drawn in drawings(cards, runs).items()}  # fmt: skip


def drawings(cards: Sequence[Fields], runs: Sequence[Fields]) -> dict[str, bytes | None]:
    """Every plot's PNG by name; None where the results fill none."""
    results = measured(cards)
    return {name: plotted(results, name) for name in AXES} | {"curves": curve_plots.plotted(runs)}


def rendered(text: str, made: dict[str, list[str]]) -> str:
    """The page with what is made in its places. Raises KeyError for a place that nothing is made for."""
    return MARK.sub(lambda found: found[1] + "\n" + "\n".join(made[found[2]]) + "\n\n" + found[3], text)


def main() -> None:
    """Write the page and its plots."""
    cards, cpus, runs = read()
    PAGE.write_text(rendered(PAGE.read_text(), sections(cards, cpus, runs)))
    for name, drawn in drawings(cards, runs).items():
        if drawn is not None:
            PLOTS.mkdir(exist_ok=True)
            (PLOTS / f"{name}.png").write_bytes(drawn)


if __name__ == "__main__":
    main()
