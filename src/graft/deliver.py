"""Whole jobs that hand a trained adapter on, from files to files: merge, combine, export.

Nothing of a job is left behind when it fails: folders appear when they are complete.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from graft import data, formats
from graft.errors import AdapterError, DataError
from graft.evaluate.gap import Gap, bound_of, gap_of, logits
from graft.export import export
from graft.export.merged import check_homes
from graft.export.place import new_dir
from graft.files import atomic_dir, no_place
from graft.model.base import storage
from graft.model.combine import combine
from graft.model.ground import ground
from graft.model.load import Loaded, config_of, load
from graft.model.load_adapter import load as load_adapter
from graft.model.merge import densified, merge
from graft.model.speech import speak

Batches = list[dict[str, Tensor]]
TRAINED = {
    "nf4": "the adapter was trained on the dequantised weights, so that merge is the trained model; the original weights are another base",
    "": "the adapter was trained on dense weights, so that the one dequantised here is another base",
}
"""What it means that a merge into the dequantised base differs from one into the original, by what the adapter was trained on."""


def merge_job(
    model: str,
    adapter: str,
    source: str,
    output_dir: str,
    console: Console,
    *,
    rows: int,
    max_gap: float | None,
    nf4: bool,
    into: str | None = None,
    requantise: bool = False,
) -> Gap:
    """Merge an adapter into its base, save the result as a plain transformers folder, and prove that it is the model that was trained.

    The proof is on the logits of real rows, of the adapted model and of the folder as loaded back. A 4-bit base is merged dequantised and
    saved in bfloat16, or exchanged for the 16-bit base `into`; `requantise` saves the result in 4 bits again. Raises AdapterError, leaving
    no folder, if the largest gap is over the bound.
    """
    new_folder(output_dir)
    if into is not None and not nf4:
        raise AdapterError("--into names the base that a 4-bit base was quantised from: give --nf4 too, or name that base as --model")
    table = data.read(source, limit=rows, called="rows")
    loaded = load(model, nf4=nf4, dtype=None if nf4 else own_dtype(model))
    why = TRAINED.get(trained_on(adapter, loaded, model) or "", "")
    adapted = attached(loaded, adapter, console)
    batches = batches_of(loaded, table.rows)
    before = [logits(loaded.model, batch) for batch in batches]
    packed, plain = bool(storage(loaded.model)), merged(adapted)
    other = rebased(plain, into or model, adapter, before, batches, console, why) if packed else None
    plain = plain if into is None or other is None else other
    exact = into is None and not requantise
    with new_dir(Path(output_dir)) as folder:
        gap = saved(plain, loaded, folder, before, batches, requantise=requantise)
        bound = max_gap if max_gap is not None else bound_of(plain.dtype, gap) if exact else float("inf")
        if not gap.largest <= bound:
            raise AdapterError(f"{gap}: over the bound {bound:.3g}, nothing was saved (--max-gap sets the bound)")
    told = f"bound {bound:.3g}" if bound < float("inf") else "no bound, since it is another model than the trained one"
    console.print(f"{'re-quantised to NF4: ' if requantise else ''}{gap} ({told}). Saved to {output_dir}.", highlight=False)
    return gap


def own_dtype(model: str) -> torch.dtype | None:
    """The dtype that a model's files are in, so that a merge is rounded to it and saved in it; None where it cannot be computed in."""
    found = getattr(config_of(model), "dtype", None)
    return found if found in (torch.float32, torch.bfloat16) else None


def trained_on(adapter: str, loaded: Loaded, model: str) -> str | None:
    """How the weights were held that an adapter was trained on ("nf4", "" dense), None where its files do not say.

    Raises AdapterError where they were held in 4 bits and the model is not: merged into it, the adapter is another model.
    """
    origin = formats.origin(Path(adapter))
    if origin is None or not origin.fingerprint:
        return None
    trained = origin.notes.get("weights", "")
    if trained and not storage(loaded.model):
        raise AdapterError(
            f"the adapter in {adapter} was trained on a base held in 4 bits, and {model} is not: give --nf4"
            " (and for a merge into the 16-bit base, --into it)"
        )
    return trained


def attached(loaded: Loaded, adapter: str, console: Console) -> Any:
    """The adapter on its base, which is spoken to as the adapter was trained; what that changes is printed."""
    adapted = load_adapter(loaded.model, adapter)
    for note in speak(adapter, loaded.model, loaded.tokenizer):
        console.print(note, highlight=False)
    return adapted


def merged(adapted: Any) -> Any:
    """The model with its adapter merged; out of 4 bits, a dense one in bfloat16."""
    merge(adapted)
    check_homes(adapted)
    return densified(adapted.model)


def rebased(plain: Any, name: str, adapter: str, before: list[Tensor], batches: Batches, console: Console, why: str) -> Any:
    """The adapter merged into the original 16-bit base, beside the merge into the dequantised one: both gaps are printed, and `why`."""
    console.print(f"merged into the dequantised base, {gap_of(before, [logits(plain, batch) for batch in batches])}", highlight=False)
    original = load(name, dtype=torch.bfloat16).model
    if storage(original):
        console.print(f"{name} is held in 4 bits itself: --into can name the base that it was made from", highlight=False)
        return None
    other = merged(load_adapter(original, adapter))
    gap = gap_of(before, [logits(other, batch) for batch in batches])
    console.print(f"merged into the original base, {gap}: {why}", highlight=False)
    return other


def saved(plain: Any, loaded: Loaded, folder: Path, before: list[Tensor], batches: Batches, *, requantise: bool) -> Gap:
    """Save the merged model, in 4 bits if asked, and measure the folder as loaded back."""
    if requantise:
        with atomic_dir(folder / "dense") as dense:
            plain.save_pretrained(dense)
            loaded.tokenizer.save_pretrained(dense)
        load(str(folder / "dense"), nf4=True, dtype=plain.dtype).model.save_pretrained(folder)
        for file in (folder / "dense").iterdir():
            file.unlink()
        (folder / "dense").rmdir()
    else:
        plain.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    again = load(str(folder), dtype=plain.dtype).model
    return gap_of(before, [logits(again, batch) for batch in batches])


def combine_job(
    model: str, adapters: Sequence[str], weights: Sequence[float], output_dir: str, console: Console, *, rank: int | None
) -> None:
    """Combine adapters of one base into a new folder, and say what was lost."""
    new_folder(output_dir)
    loaded = load(model)
    result = combine(loaded.model, adapters, weights, rank=rank)
    for path, error in result.errors.items():
        console.print(f"{path}: relative error {error:.3g}", highlight=False)
    formats.save(result.adapter, Path(output_dir), ground(loaded.model))
    kinds = ", ".join(f"{method.kind} at {len(sites)} sites" for method, sites in result.adapter.parts)
    said = f"relative error {result.error:.3g} of all changes together" if result.error else "exact"
    console.print(f"{len(adapters)} adapters as {kinds}: {said}. Saved to {output_dir}.", highlight=False)


def export_job(
    model: str,
    adapters: Sequence[str],
    target: str,
    source: str,
    output_dir: str,
    console: Console,
    *,
    rows: int,
    max_gap: float | None,
    nf4: bool,
) -> None:
    """Export an adapter to a new folder, and say what it promises and what was measured."""
    new_folder(output_dir)
    table = data.read(source, limit=rows, called="rows")
    loaded = load(model, nf4=nf4)
    for adapter in adapters:
        trained_on(adapter, loaded, model)
    report = export(loaded, adapters, target, batches_of(loaded, table.rows), output_dir, max_gap=max_gap)
    console.print(f"{report.target}: {report.promise}.", highlight=False)
    for name, value in report.facts.items():
        console.print(f"{name}: {value}", highlight=False, markup=False)
    console.print(f"{report.gap}. Saved to {output_dir}.", highlight=False)


def new_folder(output_dir: str) -> None:
    """Raise DataError if the folder exists or cannot be made."""
    if Path(output_dir).exists():
        raise DataError(f"{output_dir} exists: name a new folder")
    if why := no_place(Path(output_dir)):
        raise DataError(why)


def batches_of(loaded: Loaded, rows: Any) -> Batches:
    """Each row as a batch of its own."""
    return [data.collate([example], 0) for example in data.tokenise(rows, loaded.tokenizer, None).examples]
