"""Loading an adapter's folder into a model, only where it belongs."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graft import formats, forms
from graft.adapter import Adapter, replaced
from graft.errors import AdapterError
from graft.forms import Replacement
from graft.model.adapted import Adapted
from graft.model.base import differences, fingerprint, storage
from graft.model.ground import ground
from graft.model.wiring import Wiring

log = logging.getLogger("graft")


def load(model: Any, folder: str | Path, *, force: bool = False) -> Adapted:
    """Attach the adapter in a folder (Graft's or HF PEFT's) to a transformers model, in place.

    Raises AdapterError unless every tensor is used, every place is filled, and the model is the one that the adapter was made for.
    `force` lets another base with the same shapes pass.
    """
    wiring = Wiring(model)
    adapter = formats.read(Path(folder), ground(model))
    own = fingerprint(model, replaced(adapter.parts))
    if not force:
        check_base(adapter, own, storage(model), str(folder))
    notes = {name: value for name, value in adapter.notes.items() if name != "weights"} | storage(model)
    adapted = Adapted(wiring, replace(adapter, fingerprint=own, base=adapter.base or str(model.config.name_or_path), notes=notes))
    if is_idle(adapted):
        log.warning("the adapter in %s changes nothing: it is as it was before any training", folder)
    return adapted


@torch.no_grad()
def is_idle(adapted: Adapted) -> bool:
    """Whether the adapter leaves every module as the base has it."""
    for part in adapted.held:
        for station, holder in part:
            form, base = station.method.form(station.tensors(holder), station.base), station.base.parameters
            same = isinstance(form, Replacement) and all(torch.equal(form.parameters[k].to(v.dtype), v) for k, v in base().items())
            if not (same or forms.is_idle(form)):
                return False
    return True


def check_base(adapter: Adapter, own: str, stored: dict[str, str], folder: str) -> None:
    """Raise AdapterError if the adapter was made for another base. A 4-bit copy and the dense weights count as one base."""
    if not adapter.fingerprint:
        log.info("the adapter in %s does not say which base it is for (%s by name): only shapes were checked", folder, adapter.base or "?")
        return
    if adapter.fingerprint.count(":") != own.count(":"):
        raise AdapterError(f"cannot load the adapter in {folder}: its fingerprint is damaged")
    found = differences(own, adapter.fingerprint)
    if found == ["weights"] and stored.get("weights") != adapter.notes.get("weights"):
        log.info("the adapter in %s was trained on weights stored as %s", folder, adapter.notes.get("weights", "dense numbers"))
    elif found:
        raise AdapterError(
            f"the adapter in {folder} was made for another base ({adapter.base[:200]!r}): this model differs in its "
            f"{', '.join(found)}; force=True loads it all the same"
        )
