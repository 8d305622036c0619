"""Loading an adapter's folder into a model, only where it belongs."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from graft import formats
from graft.adapter import replaced
from graft.model import belonging, speech
from graft.model.adapted import Adapted
from graft.model.base import fingerprint
from graft.model.ground import ground
from graft.model.wiring import Wiring

log = logging.getLogger("graft")


def load(model: Any, folder: str | Path, *, force: bool = False, tokenizer: Any = None) -> Adapted:
    """Attach the adapter in a folder (Graft's, HF PEFT's or AdapterHub's) to a transformers model, in place.

    Raises AdapterError unless every tensor is used, every place is filled, and the model is the one that the adapter was made for.
    `force` lets another base with the same shapes pass. With a `tokenizer`, another chat template than
    the adapter was trained with is said.
    """
    wiring, what = Wiring(model), f"the adapter in {folder}"
    if not force:
        belonging.check_outline(formats.origin(Path(folder)), model, what)
    adapter = formats.read(Path(folder), ground(model))
    whole = replaced(adapter.parts)
    own = fingerprint(model, whole)
    if not force:
        belonging.check(adapter, model, own, whole, what)
    if tokenizer is not None and speech.differs(folder, tokenizer):
        log.warning("%s was trained with another chat template than this tokenizer's", what)
    notes = {name: value for name, value in adapter.notes.items() if name != "weights"} | belonging.portrait(model, whole)
    adapted = Adapted(wiring, replace(adapter, fingerprint=own, base=adapter.base or str(model.config.name_or_path), notes=notes))
    belonging.say_inert([(part[0][0].method, [(one.tensors(holder), one.base) for one, holder in part]) for part in adapted.held], what)
    return adapted
