"""One run of a method: attach, train, measure, detach; and the learning rate that its trials choose.

A trial trains for as many steps as a final run and is judged by the validation loss of its best evaluation; nothing is generated
and no test row is read. The final runs use the rate with the lowest validation loss, on seeds that no trial used. After each run
the base must be, bit for bit where its fingerprint looks, what it was before.
"""

import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.compare.grids import grid
from graft.compare.latency import forward_ms
from graft.compare.material import Material
from graft.compare.records import Run
from graft.compare.settings import Bounds, CompareConfig
from graft.compare.starts import start
from graft.data import Row
from graft.errors import ModelError
from graft.evaluate import score
from graft.method import config as fields_of
from graft.model.adapted import Adapted, adapt
from graft.model.base import fingerprint
from graft.model.load import Loaded
from graft.model.merge import merge, unmerge
from graft.train import TrainConfig, TrainResult, train

EVALUATIONS = 4  # of the validation loss in one run; the best one's tensors are kept
TRIAL_SEED = 1000

Fields = dict[str, Any]


class BaseChanged(ModelError):
    """A run did not leave the base as it found it; nothing measured after it would count."""


@dataclass(frozen=True)
class Bench:
    """What all runs of a comparison share."""

    config: CompareConfig
    bounds: Bounds
    loaded: Loaded
    material: Material
    metric: str
    fingerprint: str
    gated: bool
    progress: bool = True

    @property
    def folder(self) -> Path:
        """Where the comparison is written."""
        return Path(self.config.output_dir)


def trial(bench: Bench, name: str, number: int) -> Fields:
    """Train with the grid's rate of that number; the record's fields."""
    rate = grid(name, bench.bounds.trials)[number]
    with attached(bench, name, TRIAL_SEED) as adapted:
        result = fit(bench, adapted, rate, TRIAL_SEED, f"{name} trial {number + 1} of {bench.bounds.trials}")
        return described(bench, name, adapted) | trained(result, rate, TRIAL_SEED)


def final(bench: Bench, name: str, seed: int, rate: float) -> Fields:
    """Train, score every test row, time, save; the record's fields."""
    with attached(bench, name, seed) as adapted:
        result = fit(bench, adapted, rate, seed, f"{name} seed {seed}")
        folder = bench.folder / "adapters" / name / f"seed-{seed}"
        adapted.save(folder)
        fields = described(bench, name, adapted) | trained(result, rate, seed) | scored(bench, adapted.model)
        return fields | {"adapter_bytes": size(folder), "latency_ms": latencies(adapted)}


@contextmanager
def attached(bench: Bench, name: str, seed: int) -> Iterator[Adapted]:
    """The method on the base inside the block; after it, whatever happened, the base alone. Raises BaseChanged if it is not."""
    model = bench.loaded.model
    adapted = adapt(model, start(name, bench.material.text), tokenizer=bench.loaded.tokenizer, seed=seed)
    try:
        yield adapted
    finally:
        adapted.detach()
    if fingerprint(model) != bench.fingerprint:
        raise BaseChanged(f"the base model is not what it was before {name}: results from here on would be wrong.")


def fit(bench: Bench, adapted: Adapted, rate: float, seed: int, label: str) -> TrainResult:
    """Train as every run of the comparison trains."""
    config, steps = bench.config, bench.bounds.max_steps
    every = -(-steps // EVALUATIONS)
    how = TrainConfig(
        learning_rate=rate,
        max_steps=steps,
        batch_size=config.batch_size,
        grad_accum=config.grad_accum,
        eval_every=every,
        patience=EVALUATIONS,
        seed=seed,
        checkpointing=config.checkpointing,
        compile=config.compile,
        cuda_graphs=config.cuda_graphs,
    )
    held_out = bench.material.validated(config, bench.bounds)
    tokenizer = bench.loaded.tokenizer
    return train(adapted, tokenizer, bench.material.examples, held_out, how, progress=bench.progress, label=label)


def described(bench: Bench, name: str, adapted: Adapted) -> Fields:
    """What the method is and where it acts."""
    return {
        "config": fields_of(start(name, bench.material.text)),
        "trainable_parameters": sum(tensor.numel() for tensor in adapted.parameters()),
        "mergeable": not adapted.mergeable,
        "context_positions": adapted.context_positions,
        "sites": places(adapted),
        "gated": bench.gated,
    }


def places(adapted: Adapted) -> list[dict[str, str]]:
    """For each role the method acts at: the form its tensors take there and their shapes."""
    found: dict[str, dict[str, str]] = {}
    for method, site in adapted.sites:
        form = typing.get_type_hints(type(method).form)["return"].__name__.lower()
        note = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in method.shapes(site).items())
        found.setdefault(site.role, {"role": site.role, "form": form, "note": note})
    return list(found.values())


def trained(result: TrainResult, rate: float, seed: int) -> Fields:
    """What training cost and how it went."""
    return {
        "seed": seed,
        "learning_rate": rate,
        "steps": result.steps,
        "train_tokens": result.tokens,
        "train_seconds": result.seconds,
        "seconds_per_step": result.seconds_per_step,
        "tokens_per_second": result.tokens_per_second,
        "peak_memory_bytes": result.peak_memory_bytes,
        "curve": result.curve,
        "validation_loss": result.validation_loss,
    }


def scored(bench: Bench, model: Any, shots: Sequence[Row] = ()) -> Fields:
    """The score of every test row, greedily generated or ranked."""
    rows, size = bench.material.scored(bench.bounds), bench.config.batch_size
    labels = candidates(bench.material)
    result = score(model, bench.loaded.tokenizer, rows, metric=bench.metric, batch_size=size, shots=shots, labels=labels)
    others = dict(result.others) | ({"truncated_prompts": float(result.truncated)} if result.truncated else {})
    return {"metric": result.metric, "score": result.value, "others": others, "per_item": list(result.per_item)}


def candidates(material: Material) -> tuple[str, ...]:
    """The answers to rank where rows have labels but no choices of their own: all that the training rows give."""
    return tuple(sorted({row.completion for row in material.train.rows if row.label is not None}))


def latencies(adapted: Adapted) -> dict[str, float | None]:
    """Milliseconds of a forward as trained, and merged into the base where that is possible; the merge is taken back."""
    times: dict[str, float | None] = {"unmerged": forward_ms(adapted.model), "merged": None}
    if not adapted.mergeable:
        merged = merge(adapted)
        try:
            times["merged"] = forward_ms(merged)
        finally:
            unmerge(adapted)
    return times


def size(folder: Path) -> int:
    """Bytes of all files of a saved adapter."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def best_rate(trials: Sequence[Run]) -> float | None:
    """The learning rate with the lowest validation loss among finished trials; None if there is none."""
    judged = [(run.validation_loss, run.learning_rate) for run in trials if run.status == "done" and run.validation_loss is not None]
    return min(judged, key=lambda pair: pair[0])[1] if judged else None
