"""`shards`: a full checkpoint that shares with its base every file in which nothing changed, by hard links.

A file that holds a changed tensor is written anew as a whole: loaders read every tensor of every file, so a stale one must not stay.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from graft.errors import AdapterError
from graft.export.merged import merged_into, runner
from graft.export.parcel import Order, Parcel
from graft.model.adapted import Adapted
from graft.model.kept import Kept
from graft.model.load import resolve

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADDED = "model-added.safetensors"


def shards(order: Order, folder: Path) -> Parcel:
    """Write the checkpoint. Raises AdapterError where the base is no local folder, or is held in 4 bits."""
    source = Path(resolve(order.base.name)[0])
    if not source.is_dir():
        raise AdapterError(
            f"shards are shared with the files of a local folder, and {order.base.name} is a hub id: download it and name it"
        )
    if getattr(order.base.model.config, "quantization_config", None) is not None:
        raise AdapterError("the base is held in 4 bits, and its folder holds other weights: export it with `--to merged`")
    where = places(source)
    adapted = merged_into(order, "shards")
    new = changed(adapted, where)
    extra = {name: value for name, value in new.items() if name not in where}
    shared, written = 0, 0
    for file in sorted(set(where.values())):
        stale = {name: value for name, value in new.items() if where.get(name) == file} | (extra if file == SINGLE else {})
        if stale:
            rewrite(source / file, folder / file, stale)
            written += (folder / file).stat().st_size
        else:
            shared += link(source / file, folder / file)
    written += index(folder, source, where, extra) if (source / INDEX).is_file() else 0
    configure(folder, source, adapted, order)
    one = " (the base is one file: save it once with save_pretrained(max_shard_size=...) to share)" if len(set(where.values())) == 1 else ""
    dtype = order.base.model.dtype
    facts = {"shared_bytes": shared, "written_bytes": written, "changed_tensors": len(new), "shared": f"{shared:,} bytes{one}"}
    return Parcel("the base's own files, and new ones for what changed", "transformers", dtype, runner(folder, dtype), facts)


def places(source: Path) -> dict[str, str]:
    """The file that holds each tensor of a checkpoint."""
    if (source / SINGLE).is_file():
        with safe_open(source / SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), SINGLE)
    if not (source / INDEX).is_file():
        raise AdapterError(f"{source} holds neither {SINGLE} nor {INDEX}")
    found: dict[str, str] = json.loads((source / INDEX).read_text())["weight_map"]
    return found


def changed(adapted: Adapted, where: dict[str, str]) -> dict[str, Tensor]:
    """What differs from the base's files, by its name there: merged parameters, and what is no longer tied to one that they hold."""
    kept, model = adapted.undo, adapted.model
    before = {id(one.value) for one in kept.parameters if one.total is not None} if isinstance(kept, Kept) else set()
    named = [(stored_name(name, where, model), value) for name, value in model.named_parameters(remove_duplicate=False)]
    held = {id(value) for name, value in named if name in where}
    return {name: value.detach() for name, value in named if (id(value) not in before if name in where else id(value) not in held)}


def stored_name(name: str, where: dict[str, str], model: Any) -> str:
    """A parameter's name in the base's files, which may leave out or add the inner model's own."""
    prefix = f"{model.base_model_prefix}."
    choices = (name, name.removeprefix(prefix), prefix + name)
    return next((choice for choice in choices if choice in where), name)


def rewrite(source: Path, target: Path, new: dict[str, Tensor]) -> None:
    """Write a file anew with some of its tensors exchanged, each in the dtype that it had, or added."""
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata() or {"format": "pt"}
    for name, value in new.items():
        like = tensors.get(name, value)
        if like.shape != value.shape:
            raise AdapterError(f"{name} is {tuple(like.shape)} in {source.name} and {tuple(value.shape)} in the model")
        tensors[name] = value.to("cpu", like.dtype).contiguous()
    save_file(tensors, target, metadata=metadata)
    os.chmod(target, 0o644)


def link(source: Path, target: Path) -> int:
    """Link a file into the export, or copy it where the two are on different disks; the bytes that are shared."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)
        return 0
    return target.stat().st_size


def index(folder: Path, source: Path, where: dict[str, str], extra: dict[str, Tensor]) -> int:
    """Write the index, and a file of the tensors that the base's files do not have (an untied head); the bytes of that."""
    body = json.loads((source / INDEX).read_text()) | {"weight_map": where | dict.fromkeys(extra, ADDED)}
    (folder / INDEX).write_text(json.dumps(body, indent=2) + "\n")
    if not extra:
        return 0
    save_file({name: value.cpu().contiguous() for name, value in extra.items()}, folder / ADDED, metadata={"format": "pt"})
    return (folder / ADDED).stat().st_size


def configure(folder: Path, source: Path, adapted: Adapted, order: Order) -> None:
    """The base's own config with what the merge changed in it, its generation settings, and the tokenizer."""
    own = json.loads((source / "config.json").read_text())
    if isinstance(adapted.undo, Kept):
        own |= {name: getattr(adapted.model.config, name) for name in adapted.undo.config}
    (folder / "config.json").write_text(json.dumps(own, indent=2, sort_keys=True) + "\n")
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", folder)
    order.base.tokenizer.save_pretrained(folder)
