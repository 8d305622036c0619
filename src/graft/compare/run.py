"""Compare methods on one base and one data set: `records.jsonl` in the output folder, one line a run.

The base is loaded once. First it is scored untrained, then each method searches its learning rate on validation rows and is
trained and scored on every seed. A run is recorded when it is done, so a comparison that was stopped goes on where it was when it
is started again in the same folder with the same settings: what is done is not repeated, what failed is tried again. A run that
fails with an error of Graft's or for want of memory is recorded with its reason and the others go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from graft.compare import records, wording
from graft.compare.baselines import in_context, zero_shot
from graft.compare.budget import estimate, fit_budget, job_of, seconds, shown, warm_up
from graft.compare.grids import DEFAULT_RATES
from graft.compare.machine import machine, versions
from graft.compare.material import gather
from graft.compare.records import Run
from graft.compare.settings import Bounds, CompareConfig, by_hand, remember, remembered, settings
from graft.compare.starts import chosen, start
from graft.compare.trials import BaseChanged, Bench, Fields, best_rate, final, trial
from graft.errors import DataError, GraftError
from graft.evaluate import checked_metric
from graft.files import no_place
from graft.kernels import nf4
from graft.model.base import fingerprint
from graft.model.families import sites
from graft.model.load import load
from graft.model.positions import room_for_text
from graft.train.meter import Clock
from graft.train.progress import duration

SCHEMA = records.SCHEMA


@dataclass(frozen=True)
class Task:
    """One line of the records to be: `name` is what resuming looks for."""

    name: str
    method: str
    role: str
    work: Callable[[], Fields]


def compare(config: CompareConfig, *, console: Console | None = None, progress: bool = True) -> Path:
    """Run, or go on with, the comparison that `config` describes; returns the path of its records.

    Raises GraftError before anything is run if something asked for does not exist or the folder holds another comparison, and
    KeyboardInterrupt, once the way to go on is printed, when it is stopped.
    """
    console = console or Console(stderr=True)
    if config.budget is not None:
        seconds(config.budget)
    names = chosen(config.methods, config.full)
    bench = prepared(config, progress)
    bench = begun(bench, names, console)
    tasks = len(list_of(bench, names))
    try:
        for name in ("zero-shot", "in-context"):
            perform(bench, BASELINES[name](bench), tasks, console)
        for name in names:
            perform_method(bench, name, tasks, console)
    except KeyboardInterrupt:
        done = sum(run.status == "done" for run in known(bench).values())
        text = f"Stopped; {done} of {tasks} runs are recorded in {file_of(bench)}. The same command goes on from there."
        console.print(f"\n{text}", highlight=False, markup=False, soft_wrap=True)
        raise KeyboardInterrupt(text) from None
    return file_of(bench)


BASELINES: dict[str, Callable[[Bench], Task]] = {
    "zero-shot": lambda bench: Task("zero-shot", "zero-shot", "baseline", partial(zero_shot, bench)),
    "in-context": lambda bench: Task("in-context", "in-context", "baseline", partial(in_context, bench)),
}


def file_of(bench: Bench) -> Path:
    """The records file."""
    return bench.folder / records.FILE


def prepared(config: CompareConfig, progress: bool) -> Bench:
    """The base and the rows, loaded; the bounds are those by hand or the defaults."""
    if why := no_place(Path(config.output_dir), beside=False):
        raise DataError(why)
    loaded = load(config.model, nf4=config.nf4)
    longest = room_for_text(loaded.model, [start(name, "a text") for name in chosen(config.methods, config.full)])
    material = gather(replace(config, max_length=min(config.max_length, longest)), loaded.tokenizer)
    if longest < config.max_length:
        note = f"rows have room for {longest} tokens in the model's context, beside the virtual ones of any method"
        material = replace(material, notes=(note, *material.notes))
    metric = checked_metric(config.metric, material.test.rows)
    gated = any(site.gated for site in sites(loaded.model))
    return Bench(config, by_hand(config, Bounds()), loaded, material, metric, fingerprint(loaded.model), gated, progress)


def begun(bench: Bench, names: Sequence[str], console: Console) -> Bench:
    """The bench with the bounds of the comparison begun in its folder, or of a new one, which is planned, shown and written down."""
    config = bench.config
    facts = {"methods": list(names), "sha256": bench.material.sha256, "fingerprint": bench.fingerprint, "metric": bench.metric}
    now = settings(config, facts)
    for note in bench.material.notes:
        console.print(note, highlight=False)
    bounds = remembered(bench.folder, now)
    if bounds is not None:
        console.print(f"Going on with the comparison in {bench.folder}.", highlight=False)
        return replace(bench, bounds=bounds)
    if file_of(bench).is_file() and b'"kind":"run"' in file_of(bench).read_bytes():
        raise DataError(f"{bench.folder} has records but no settings.json to go on from; choose another output folder.")
    job, bounds, expected = job_of(bench, names), bench.bounds, None
    if config.budget is not None:
        console.print("Timing a few steps to plan the budget...", highlight=False)
        with Clock() as warming:
            costs = warm_up(bench, names)
        left = seconds(config.budget) - warming.seconds
        bounds = fit_budget(config, costs, job, left)
        expected = estimate(costs, job, bounds)
    bench = replace(bench, bounds=bounds)
    console.print(shown(bounds, job, config, expected))
    records.append(file_of(bench), plan(bench, names))
    remember(bench.folder, now, bounds)
    return bench


def plan(bench: Bench, names: Sequence[str]) -> dict[str, Any]:
    """The first line of the records."""
    config, bounds, material, loaded = bench.config, bench.bounds, bench.material, bench.loaded
    values = loaded.model.parameters()
    parameters = sum(value.quant_state.shape.numel() if nf4.is_packed(value) else value.numel() for value in values)
    sizes = {"rows_train": len(material.train), "rows_validation": len(material.validation), "rows_eval": len(material.scored(bounds))}
    files = {"train": Path(config.data).name, "eval": Path(config.eval_data).name if config.eval_data else "held out of the training file"}
    return {
        "schema": SCHEMA,
        "kind": "plan",
        "command": config.command,
        "model": {"name": loaded.name, "note": loaded.note, "fingerprint": bench.fingerprint, "parameters": parameters},
        "data": files | {"sha256": material.sha256, "metric": bench.metric, "notes": list(material.notes)} | sizes,
        "machine": machine(),
        "versions": versions(),
        "budget": config.budget,
        "methods": ["zero-shot", "in-context", *names],
        "trials": bounds.trials,
        "seeds": bounds.seeds,
        "max_steps": bounds.max_steps,
        "demo": config.demo,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "full_command": config.full_command,
    }


def list_of(bench: Bench, names: Sequence[str]) -> list[str]:
    """The names of all runs, in order."""
    trials, seeds = range(bench.bounds.searches), range(bench.bounds.seeds)
    runs = [f"{name}/{kind}-{n}" for name in names for kind, numbers in (("trial", trials), ("seed", seeds)) for n in numbers]
    return [*BASELINES, *runs]


def perform_method(bench: Bench, name: str, tasks: int, console: Console) -> None:
    """A method's trials, then its final runs with the rate that they choose."""
    for number in range(bench.bounds.searches):
        perform(bench, Task(f"{name}/trial-{number}", name, "trial", partial(trial, bench, name, number)), tasks, console)
    rate = DEFAULT_RATES[name]
    if bench.bounds.searches:
        tried = [run for run in known(bench).values() if run.method == name and run.role == "trial"]
        best = best_rate(tried)
        if best is None:
            reasons = "; ".join(dict.fromkeys(run.reason for run in tried))
            skip(bench, name, f"none of its {len(tried)} trials finished: {reasons}")
            return
        rate = next((run.learning_rate for run in known(bench).values() if settled(run, name)), None) or best
    for seed in range(bench.bounds.seeds):
        perform(bench, Task(f"{name}/seed-{seed}", name, "final", partial(final, bench, name, seed, rate)), tasks, console)


def settled(run: Run, method: str) -> bool:
    """Whether a run settles its method's learning rate: all seeds have one, also where a trial that had failed does better later."""
    return run.method == method and run.role == "final" and run.status == "done"


def skip(bench: Bench, name: str, reason: str) -> None:
    """Record that a method has no final run, and why."""
    for seed in range(bench.bounds.seeds):
        record = {"kind": "run", "run": f"{name}/seed-{seed}", "method": name, "role": "final", "status": "skipped", "reason": reason}
        records.append(file_of(bench), record)


def perform(bench: Bench, task: Task, tasks: int, console: Console) -> None:
    """Do one task, unless it is done already, and record it."""
    before = known(bench)
    if task.name in before and before[task.name].status == "done":
        return
    with Clock() as clock:
        fields, status, reason = attempted(task.work)
    head = {"kind": "run", "run": task.name, "method": task.method, "role": task.role, "status": status, "reason": reason}
    records.append(file_of(bench), head | fields)
    number = len(before.keys() | {task.name})
    text = outcome(fields) if status == "done" else f"failed: {reason}"
    console.print(f"[{number}/{tasks}] {task.name}  {text}  ({duration(clock.seconds)})", highlight=False, markup=False, soft_wrap=True)


def attempted(work: Callable[[], Fields]) -> tuple[Fields, str, str]:
    """(fields, status, reason). What is a bug, and a base that changed, is raised."""
    try:
        return work(), "done", ""
    except BaseChanged:
        raise
    except GraftError as error:
        reason = str(error)
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {str(error).splitlines()[0]}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {}, "failed", reason


def known(bench: Bench) -> dict[str, Run]:
    """The latest record of every run so far."""
    return {run.run: run for run in records.read(bench.folder).runs}


def outcome(fields: Fields) -> str:
    """What a run gave, in a few words."""
    parts = [f"learning rate {fields['learning_rate']:g}"] if fields.get("learning_rate") else []
    if fields.get("shots"):
        parts.append(f"{fields['shots']} examples")
    if fields.get("score") is not None:
        parts.append(f"{wording.metric_name(fields['metric'])} {wording.score(fields['metric'], fields['score'])}")
    elif fields.get("validation_loss") is not None:
        parts.append(f"validation loss {fields['validation_loss']:.4f}")
    return ", ".join(parts)
