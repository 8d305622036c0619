"""Whole jobs, from files to files, as the command line runs them: preview, train, evaluate, verify, merge.

Each is one function of a frozen config. Nothing of a job is left behind when it fails: folders appear when they are complete.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from graft import data
from graft.compare.grids import DEFAULT_RATES
from graft.compare.starts import chosen, start
from graft.errors import AdapterError, DataError, TargetError, TrainingError
from graft.evaluate import Scores, score
from graft.files import atomic_dir, atomic_write
from graft.method import Method
from graft.methods import checked
from graft.model.adapted import Adapted, adapt
from graft.model.digest import changed as differing
from graft.model.digest import digests, whole
from graft.model.load import Loaded, load, tokenizer_of
from graft.model.load_adapter import load as load_adapter
from graft.model.merge import merge
from graft.train import train
from graft.train.recipe import TrainConfig
from graft.verify import MERGED, verify

PREVIEWED = 64  # rows read for a preview's counts
GAPS = {torch.float64: 1e-6, torch.float32: 1e-2}
VERIFIED = 8  # rows that are run to verify
COARSE = 1.0  # largest logit gap that 16-bit rounding of the merged weights explains


@dataclass(frozen=True)
class TrainJob:
    """Train one method and save it. `set` holds "field=value" changes to the method; None means the method's or the data's own."""

    model: str
    data: str
    output_dir: str
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
    seed: int = 42
    metric: str = "auto"
    bad_rows: str = "fail"
    nf4: bool = False
    checkpointing: bool = False
    tracker: str = "none"


def preview(model: str, source: str, console: Console, *, rows: int = 3, max_length: int = 512, bad_rows: str = "fail") -> None:
    """Print rows of a data file with each token marked as trained or ignored."""
    tokenizer = tokenizer_of(model)
    table = data.read(source, bad_rows=bad_rows, limit=PREVIEWED)
    data.preview(data.tokenise(table.rows, tokenizer, max_length), tokenizer, console, rows)


def train_job(job: TrainJob, console: Console) -> Path:
    """Train, save the adapter into `output_dir` with its tokenizer and `run.json`, score it if there is evaluation data.

    Returns the adapter's folder. Raises GraftError, and leaves no folder, if anything of it cannot be done.
    """
    chosen([job.method])
    table = data.read(job.data, bad_rows=job.bad_rows)
    held_out = data.read(job.eval_data, bad_rows=job.bad_rows) if job.eval_data else None
    loaded = load(job.model, nf4=job.nf4)
    examples = data.tokenise(table.rows, loaded.tokenizer, job.max_length)
    for note in (f"{len(table.bad)} rows that cannot be read are left out" if table.bad else "", examples.note):
        console.print(note, highlight=False) if note else None
    before = digests(loaded.model)
    method = changed(start(job.method, first_prompts(table, loaded)), job.set)
    adapted = adapt(loaded.model, method, tokenizer=loaded.tokenizer, seed=job.seed)
    count = sum(value.numel() for value in adapted.parameters())
    console.print(f"{job.method}: {count:,} trained parameters, {len(examples.examples):,} rows", highlight=False)
    validation = data.tokenise(held_out.rows, loaded.tokenizer, job.max_length).examples if held_out and job.eval_every else None
    try:
        result = train(adapted, loaded.tokenizer, examples.examples, validation, recipe(job, len(table.rows)), label=job.method)
    except KeyboardInterrupt as stop:
        console.print(f"Stopped ({stop}); nothing was saved.", highlight=False)
        raise
    proof = untouched(loaded.model, before)
    folder = Path(job.output_dir)
    adapted.save(folder)
    loaded.tokenizer.save_pretrained(folder)
    facts = {
        "job": asdict(job),
        "base": {"name": loaded.name, "note": loaded.note} | proof,
        "data_sha256": table.sha256,
        "training": asdict(result),
    }
    if held_out is not None:
        scores = score(loaded.model, loaded.tokenizer, held_out.rows, metric=job.metric, batch_size=job.batch_size)
        console.print(scored(scores))
        facts["scores"] = {"metric": scores.metric, "value": scores.value, **scores.others}
    atomic_write(folder / "run.json", json.dumps(facts, indent=1) + "\n")
    return folder


def untouched(model: Any, before: dict[str, str]) -> dict[str, str]:
    """The base's digest before and now, for the record. Raises TrainingError where they differ."""
    after = digests(model)
    if before != after:
        raise TrainingError(f"training changed the base, which must not be: {differing(before, after)}; nothing was saved")
    return {"digest_before": whole(before), "digest_after": whole(after)}


def recipe(job: TrainJob, rows: int) -> TrainConfig:
    """The training config of a job on so many rows."""
    own = {field.name: getattr(job, field.name) for field in dataclasses.fields(TrainConfig) if hasattr(job, field.name)}
    steps = job.max_steps or max(1, round(job.epochs * rows / (job.batch_size * job.grad_accum)))
    rate = job.learning_rate or DEFAULT_RATES[job.method]
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


def first_prompts(table: data.Table, loaded: Loaded) -> str:
    """The first prompts of the rows, for methods that start from text."""
    return str(loaded.tokenizer.decode([token for row in table.rows[:4] for token in data.prompt_ids(row, loaded.tokenizer)]))


def scored(scores: Scores) -> RichTable:
    """Scores as a table for the terminal."""
    made = RichTable(show_header=False)
    for name, value in {scores.metric: scores.value, **scores.others}.items():
        made.add_row(name, f"{value:.4f}")
    made.add_row("rows", str(len(scores.per_item)))
    return made


def evaluate_job(
    model: str, source: str, console: Console, *, adapter: str | None, metric: str, limit: int, batch_size: int, nf4: bool
) -> Scores:
    """Score a base, or an adapter on it, on the rows of a file."""
    table = data.read(source, limit=limit or None)
    loaded = load(model, nf4=nf4)
    if adapter is not None:
        load_adapter(loaded.model, adapter)
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


@dataclass(frozen=True)
class Gap:
    """How far two sets of logits are apart, over real rows: largest and mean absolute difference, and equal next tokens."""

    largest: float
    mean: float
    agreement: float


def merge_job(
    model: str, adapter: str, source: str, output_dir: str, console: Console, *, rows: int, max_gap: float | None, nf4: bool
) -> Gap:
    """Merge an adapter into its base, save the result as a plain transformers folder, and prove that it is the model that was trained.

    The proof is on the logits of real rows, of the adapted model and of the folder as loaded back. Raises AdapterError, leaving no
    folder, if the largest gap is over the bound.
    """
    if Path(output_dir).exists():
        raise DataError(f"{output_dir} exists: name a new folder for the merged model")
    table = data.read(source, limit=rows)
    loaded = load(model, nf4=nf4)
    adapted: Adapted = load_adapter(loaded.model, adapter)
    batches = [data.collate([example], 0) for example in data.tokenise(table.rows, loaded.tokenizer, None).examples]
    before = [logits(loaded.model, batch) for batch in batches]
    dtype = loaded.model.get_input_embeddings().weight.dtype
    bound = max_gap if max_gap is not None else GAPS.get(dtype, COARSE)
    with atomic_dir(Path(output_dir)) as folder:
        merge(adapted).save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        again = load(str(folder), dtype=dtype)
        gap = gap_of(before, [logits(again.model, batch) for batch in batches])
        report = f"logits on {len(batches)} rows: largest gap {gap.largest:.3g}, mean {gap.mean:.3g}, same next token {gap.agreement:.1%}"
        if not gap.largest <= bound:
            raise AdapterError(f"{report}: over the bound {bound:g}, nothing was saved (--max-gap sets the bound)")
    console.print(f"{report} (bound {bound:g}). Saved to {output_dir}.", highlight=False)
    return gap


@torch.no_grad()
def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [1, T, vocabulary] of one row, in float32."""
    device = next(model.parameters()).device
    found: torch.Tensor = model(input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)).logits
    return found.float().cpu()


def gap_of(before: list[torch.Tensor], after: list[torch.Tensor]) -> Gap:
    """The gap over all positions of all rows."""
    differences = torch.cat([(a - b).abs().flatten() for a, b in zip(before, after, strict=True)])
    equal = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(before, after, strict=True)])
    return Gap(float(differences.max()), float(differences.mean()), float(equal.float().mean()))
