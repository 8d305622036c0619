"""Reading and writing adapters: HF PEFT's two files where PEFT has the method, the same two with our own type where it has not; and
AdapterHub's files, read where a folder holds them and written where asked for.

What PEFT has no place for (the base's fingerprint, notes, Graft's version) stands in the safetensors metadata, under `graft`.
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graft.adapter import Adapter, Part
from graft.errors import AdapterError, GraftError
from graft.formats import adapterhub, card, native, peft
from graft.formats.folder import WEIGHTS, beside, read_config, read_metadata, read_tensors
from graft.formats.folder import write as write_folder
from graft.formats.ground import Ground
from graft.formats.leaves import shown
from graft.method import Tensors
from graft.methods import KINDS

Reader = Callable[[dict[str, Any], Tensors, Ground], tuple[Part, ...]]
READERS: dict[str, Reader] = {native.TYPE: native.read, **dict.fromkeys(peft.TYPES, peft.read)}
FORMATS = ("graft", "adapterhub")
FACTS = "graft"  # the metadata's key
MAX_SAID = 1000  # characters of what is wrong with a folder, parts of which may be quoted

NONE: Mapping[str, str] = {}

__all__ = ["Ground", "announced", "beside", "origin", "read", "save"]


def save(adapter: Adapter, folder: Path, ground: Ground, format: str = "graft", texts: Mapping[str, str] = NONE) -> None:
    """Write the adapter's folder, whole or not at all: as `graft` reads it (PEFT's files where there are any) or as `adapterhub`.

    `texts` are further files by name, such as a chat template.
    Raises AdapterError where it cannot be written, or has no exact form in the format.
    """
    if not adapter.count():
        raise AdapterError("an adapter without a single value is not saved")
    if format not in FORMATS:
        raise AdapterError(f"format = {format!r}: choose one of {', '.join(FORMATS)}")
    if format == "adapterhub":
        name = adapter.notes.get(adapterhub.NOTE) or folder.resolve().name.replace(".", "_")
        config, files = adapterhub.write(adapter, ground, name)
    else:
        config, tensors = peft.write(adapter, ground) or native.write(adapter)
        files = {WEIGHTS: tensors}
    facts = {"version": version("graft-peft"), "fingerprint": adapter.fingerprint, "base": adapter.base, "notes": adapter.notes}
    write_folder(folder, config, files, {"format": "pt", FACTS: json.dumps(facts)}, card.text(adapter, config), texts)


def origin(folder: Path) -> Adapter | None:
    """An adapter without its parts: only where it comes from, for which no tensor is read. None where that cannot be known."""
    path = next((folder / name for name in (WEIGHTS, adapterhub.WEIGHTS) if (folder / name).is_file()), None)
    try:
        facts = {} if path is None else facts_of(read_metadata(path))
    except (AdapterError, OSError):
        return None
    return Adapter((), facts["fingerprint"], str(facts.get("base", "")), facts.get("notes", {})) if facts.get("fingerprint") else None


def announced(folder: Path) -> str:
    """The methods that an adapter's config names, such as "lora" or "lora + bias"; "" where it names none. No tensor is read."""
    try:
        config = read_config(folder)
    except (AdapterError, OSError):
        return ""
    own = config.get(FACTS)
    parts = own.get("parts") if isinstance(own, dict) else None
    if config.get("peft_type") == native.TYPE and isinstance(parts, list):
        return " + ".join(part["kind"] for part in parts if isinstance(part, dict) and part.get("kind") in KINDS)
    if config.get("peft_type") == peft.KINDS["lora"].peft_type:
        return "dora" if config.get("use_dora") else "lora"
    return next((kind for kind, codec in peft.KINDS.items() if codec.peft_type == config.get("peft_type")), "")


def read(folder: Path, ground: Ground) -> Adapter:
    """The adapter in a folder, checked against the base it is for: every tensor used, every place filled.

    The fingerprint is empty where the file is foreign. Raises AdapterError, one sentence that names the folder.
    """
    try:
        config = read_config(folder)
        if adapterhub.recognised(config):
            return from_adapterhub(folder, config, ground)
        kind = config.get("peft_type")
        if not isinstance(kind, str) or kind not in READERS:
            raise AdapterError(f"its peft_type is {shown([str(kind)])}: Graft reads {', '.join(READERS)}")
        tensors, metadata = read_tensors(folder)
        facts = facts_of(metadata)
        parts = READERS[kind](config, tensors, ground)
    except (GraftError, OSError) as error:
        raise AdapterError(f"cannot load the adapter in {folder}: {str(error)[:MAX_SAID]}") from error
    base = facts.get("base") or config.get("base_model_name_or_path") or ""
    return Adapter(parts, facts.get("fingerprint", ""), str(base), facts.get("notes", {}))


def from_adapterhub(folder: Path, config: dict[str, Any], ground: Ground) -> Adapter:
    """The adapter in AdapterHub's files. A head is read if there is one."""
    tensors, metadata = read_tensors(folder, adapterhub.WEIGHTS, adapterhub.CONVERT)
    heads = [folder / name for name in (adapterhub.HEAD, adapterhub.PICKLES[adapterhub.HEAD])]
    if heads[1].is_file() and not heads[0].is_file():
        raise AdapterError(f"it holds a head as a pickle ({heads[1].name}), which is never opened: {adapterhub.CONVERT}, or remove it")
    head = read_tensors(folder, adapterhub.HEAD)[0] if heads[0].is_file() else {}
    facts = facts_of(metadata)
    parts = adapterhub.read(config, tensors, head, ground)
    base = str(facts.get("base") or config.get("model_name") or "")
    return Adapter(parts, facts.get("fingerprint", ""), base, facts.get("notes", {}) | {adapterhub.NOTE: str(config["name"])})


def facts_of(metadata: dict[str, str]) -> dict[str, Any]:
    """Our facts; {} in a foreign file. Raises AdapterError where they are damaged."""
    try:
        facts = json.loads(metadata.get(FACTS, "{}"))
    except (ValueError, RecursionError) as error:
        raise AdapterError("its metadata is damaged") from error
    texts = isinstance(facts, dict) and all(isinstance(facts.get(name, ""), str) for name in ("fingerprint", "base"))
    notes = facts.get("notes", {}) if texts else None
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise AdapterError("its metadata is damaged")
    return dict(facts)
