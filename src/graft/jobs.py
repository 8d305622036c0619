"""Whole jobs, from files to files, as the command line runs them: preview, train, evaluate, verify.

Each is one function of a frozen config. Nothing of a job is left behind when it fails: folders appear when they are complete.
"""

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from graft import data
from graft.compare.grids import DEFAULT_RATES
from graft.compare.material import starting_text
from graft.compare.starts import chosen, start
from graft.errors import DataError, TargetError, TrainingError
from graft.evaluate import Scores, checked_metric, score
from graft.files import atomic_write, no_place
from graft.formats.folder import CONFIG, MODEL
from graft.method import Method
from graft.methods import checked
from graft.model.adapted import Adapted, adapt
from graft.model.digest import changed as differing
from graft.model.digest import digests, whole
from graft.model.load import Loaded, load, tokenizer_of
from graft.model.load_adapter import load as load_adapter
from graft.model.positions import room_for_text
from graft.model.regional import pays
from graft.model.speech import speak
from graft.plan.report import after_oom
from graft.plan.setup import Setup
from graft.train import train
from graft.train.recipe import TrainConfig, TrainResult
from graft.verify import MERGED, verify

PREVIEWED = 64  # rows read for a preview's counts
VERIFIED = 8  # rows that are run to verify


@dataclass(frozen=True)
class TrainJob:
    """Train one method and save it. `set` holds "field=value" changes to the method; None means the method's or the data's own."""

    model: str
    data: str
    output_dir: str
    overwrite: bool = False
    method: str = "lora"
    set: tuple[str, ...] = ()
    eval_data: str | None = None
    learning_rate: float | None = None
    max_steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 16
    grad_accum: int = 1
    max_length: int = 512
    warmup: float = 0.05
    schedule: str = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    eval_every: int = 0
    patience: int = 0
    save_every: int = 0
    seed: int = 42
    metric: str = "auto"
    bad_rows: str = "fail"
    nf4: bool = False
    checkpointing: bool = False
    compile: str = "auto"
    cuda_graphs: str = "auto"
    strict: bool = False
    optimizer: str = "adamw"
    tracker: str = "none"


def preview(model: str, source: str, console: Console, *, rows: int = 3, max_length: int = 512, bad_rows: str = "fail") -> None:
    """Print rows of a data file with each token marked as trained or ignored."""
    if rows < 1:
        raise DataError(f"rows is {rows}, must be at least 1")
    tokenizer = tokenizer_of(model)
    most = max(rows, PREVIEWED)
    table = data.read(source, bad_rows=bad_rows, limit=most + 1)  # one more, to know whether these are all
    data.preview(data.tokenise(table.rows[:most], tokenizer, max_length), tokenizer, console, rows, part=len(table) > most)


def train_job(job: TrainJob, console: Console) -> Path:
    """Train, save the adapter into `output_dir` with its tokenizer and `run.json`, score it if there is evaluation data.

    Returns the adapter's folder. Raises GraftError, and leaves no folder, if anything of it cannot be done; where only the scoring fails,
    the adapter stays, with its record.
    """
    checked_job(job)
    table = data.read(job.data, bad_rows=job.bad_rows)
    held_out = data.read(job.eval_data, bad_rows=job.bad_rows) if job.eval_data else None
    checked_metric(job.metric, (held_out or table).rows)
    loaded = load(job.model, nf4=job.nf4)
    method, longest = begun(job, table, loaded)
    say(console, "" if longest == job.max_length else f"rows have room for {longest} tokens in the model's context")
    examples = data.tokenise(table.rows, loaded.tokenizer, longest)
    say(console, f"{len(table.bad)} rows that cannot be read are left out" if table.bad else "", examples.note)
    before, adapted = digests(loaded.model), adapt(loaded.model, method, tokenizer=loaded.tokenizer, seed=job.seed)
    trained = sum(value.numel() for value in adapted.parameters())
    say(console, f"{job.method}: {trained:,} trained parameters, {len(examples.examples):,} rows")
    validation = data.tokenise(held_out.rows, loaded.tokenizer, longest).examples if held_out and job.eval_every else None
    both, about = (examples.examples, validation), {"base": whole(before), "method": str(method)}
    result = fitted(job, adapted, loaded, method, both, recipe(job, len(table.rows)), about, console)
    proof = untouched(loaded.model, before)
    say(console, *result.notes)
    adapted.save(folder := Path(job.output_dir), tokenizer=loaded.tokenizer)
    loaded.tokenizer.save_pretrained(folder)
    base = {"name": loaded.name, "note": loaded.note} | proof
    facts = {"job": asdict(job), "base": base, "data_sha256": table.sha256, "training": asdict(result)}
    record(folder, facts)
    if state := state_of(job):
        state.unlink(missing_ok=True)
    if held_out is not None:
        record(folder, facts | {"scores": judged(job, loaded, held_out, folder, console)})
    return folder


def judged(job: TrainJob, loaded: Loaded, held_out: data.Table, folder: Path, console: Console) -> dict[str, Any]:
    """The scores of what was trained and saved, as its record has them."""
    try:
        scores = score(loaded.model, loaded.tokenizer, held_out.rows, metric=job.metric, batch_size=job.batch_size)
    except KeyboardInterrupt:
        say(console, f"Stopped while it was scored; the adapter is in {folder}")
        raise
    console.print(scored(scores))
    return {"metric": scores.metric, "value": scores.value, **scores.others}


def fitted(
    job: TrainJob,
    adapted: Adapted,
    loaded: Loaded,
    method: Method,
    examples: tuple[Sequence[data.Example], Sequence[data.Example] | None],
    config: TrainConfig,
    about: dict[str, str],
    console: Console,
) -> TrainResult:
    """Train on examples, beside those of validation; what stops it is said in a sentence."""
    state = state_of(job)
    try:
        return train(adapted, loaded.tokenizer, *examples, config, label=job.method, state=state, about=about)
    except KeyboardInterrupt as stop:
        kept = state is not None and state.exists()
        say(console, f"Stopped ({stop}); {f'the same command goes on from {shlex.quote(str(state))}' if kept else 'nothing was saved'}")
        raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(too_small(job, loaded.model, method, examples[0])) from error


def state_of(job: TrainJob) -> Path | None:
    """Where the state of a job's run is kept while it trains; None where it is not to be, and none is there."""
    folder = Path(job.output_dir)
    folder = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    path = folder.with_name(f"{folder.name}.unfinished.safetensors")
    return path if job.save_every or path.exists() else None


def record(folder: Path, facts: dict[str, Any]) -> None:
    """Write what a run was."""
    atomic_write(folder / "run.json", json.dumps(facts, indent=1) + "\n")


def checked_job(job: TrainJob) -> None:
    """Raise GraftError for what can be known to be wrong before anything is read."""
    if job.method == "all":
        raise TrainingError("graft train trains one method: name it with --method. graft compare trains all of them")
    chosen([job.method])
    for name in ("batch_size", "grad_accum"):
        if getattr(job, name) < 1:
            raise TrainingError(f"{name} is {getattr(job, name)}; it must be at least 1.")
    if not (math.isfinite(job.epochs) and job.epochs > 0):
        raise TrainingError(f"epochs is {job.epochs}; it must be a positive number.")
    if job.eval_every and not job.eval_data:
        raise TrainingError("eval_every needs rows to evaluate: name them with --eval-data")
    recipe(job, 1)
    if why := no_place(Path(job.output_dir)):
        raise TrainingError(why)
    if (Path(job.output_dir) / MODEL).exists():
        raise TrainingError(f"{job.output_dir} holds a model: name another folder for the adapter")
    if (Path(job.output_dir) / CONFIG).exists() and not job.overwrite:
        raise TrainingError(f"{job.output_dir} holds an adapter already: name another folder, or replace it with --overwrite")


def begun(job: TrainJob, table: data.Table, loaded: Loaded) -> tuple[Method, int]:
    """The method as it starts, and how many tokens of a row there is room for."""
    method = changed(start(job.method, starting_text(table, loaded.tokenizer)), job.set)
    return method, min(job.max_length, room_for_text(loaded.model, [method]))


def too_small(job: TrainJob, model: Any, method: Method, examples: Sequence[data.Example]) -> str:
    """What to say when the model's card was too small for a job on these examples: the plan, what was held, and what fits."""
    lengths = [len(example.ids) for example in examples]
    tokens, answer = max(lengths), max(example.trained for example in examples)
    compiled = job.compile == "on" or (job.compile == "auto" and pays(model, round(job.epochs * sum(lengths))))
    setup = Setup(
        job.batch_size, tokens, job.grad_accum, job.checkpointing, job.nf4, job.optimizer, compiled=compiled, supervised=answer / tokens
    )
    held, card = torch.cuda.max_memory_allocated(model.device), torch.cuda.get_device_properties(model.device).total_memory
    name = " ".join([job.method, *job.set])
    return after_oom(model.config, name, method, setup, lengths, card=card, held=held, model=job.model, source=job.data)


def say(console: Console, *notes: str) -> None:
    """Print those of the notes that say something, a line each."""
    for note in filter(None, notes):
        console.print(note, highlight=False, soft_wrap=True)


def untouched(model: Any, before: dict[str, str]) -> dict[str, str]:
    """The base's digest before and now, for the record. Raises TrainingError where they differ."""
    after = digests(model)
    if before != after:
        raise TrainingError(f"training changed the base, which must not be: {differing(before, after)}; nothing was saved")
    return {"digest_before": whole(before), "digest_after": whole(after)}


def recipe(job: TrainJob, rows: int) -> TrainConfig:
    """The training config of a job on so many rows."""
    own = {field.name: getattr(job, field.name) for field in dataclasses.fields(TrainConfig) if hasattr(job, field.name)}
    steps = job.max_steps if job.max_steps is not None else max(1, round(job.epochs * rows / (job.batch_size * job.grad_accum)))
    rate = job.learning_rate if job.learning_rate is not None else DEFAULT_RATES[job.method]
    return TrainConfig(**own | {"max_steps": steps, "learning_rate": rate, "tracker_dir": job.output_dir})


def changed(method: Method, changes: Sequence[str]) -> Method:
    """The method with "field=value" changes. Raises TargetError on a field it does not have or a value that is not of its type."""
    fields = {field.name: field for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in fields:
            raise TargetError(f"--set {change}: {method.kind} has the fields {', '.join(fields)}; write FIELD=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if isinstance(getattr(method, name), tuple) and isinstance(value, str):
            value = tuple(part.strip() for part in value.split(","))
        values[name] = checked(f"{method.kind}.{name}", value, fields[name].type)
    return dataclasses.replace(method, **values)  # type: ignore[type-var]


def scored(scores: Scores) -> RichTable:
    """Scores as a table for the terminal."""
    made = RichTable(show_header=False)
    for name, value in {scores.metric: scores.value, **scores.others}.items():
        made.add_row(name, f"{value:.4f}")
    made.add_row("rows", str(len(scores.per_item)))
    if scores.truncated:
        made.add_row("of these cut to the model's context", str(scores.truncated))
    return made


def evaluate_job(
    model: str, source: str, console: Console, *, adapter: str | None, metric: str, limit: int, batch_size: int, nf4: bool
) -> Scores:
    """Score a base, or an adapter on it, on the rows of a file."""
    table = data.read(source, limit=limit or None, called="eval_limit")
    loaded = load(model, nf4=nf4)
    if adapter is not None:
        load_adapter(loaded.model, adapter)
        for note in speak(adapter, loaded.model, loaded.tokenizer):
            console.print(note, highlight=False)
    scores = score(loaded.model, loaded.tokenizer, table.rows, metric=metric, batch_size=batch_size)
    console.print(scored(scores))
    return scores


def verify_job(model: str, adapter: str, source: str | None, console: Console, *, force: bool = False, nf4: bool = False) -> bool:
    """Take an adapter through everything on its base and print the base's digest after each stage; whether it is always the same."""
    table = data.read(source, limit=VERIFIED) if source else None
    loaded = load(model, nf4=nf4)
    examples = data.tokenise(table.rows, loaded.tokenizer, None).examples if table else []
    stages = verify(loaded.model, adapter, [data.collate([example], 0) for example in examples], force=force)
    shown = RichTable("stage", "SHA-256 of the base", "equal", "note", box=None)
    for stage in stages:
        shown.add_row(stage.name, stage.digest[:16], "-" if stage.name == MERGED else "yes" if stage.equal else "NO", stage.note)
    console.print(shown)
    console.print(f"Digest before: {stages[0].digest}\nDigest after:  {stages[-1].digest}", highlight=False)
    return all(stage.equal for stage in stages)
