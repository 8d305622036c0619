"""The folder of an adapter: `adapter_config.json`, `adapter_model.safetensors` and a model card, read with distrust, written whole.

Never a pickle. The header of the safetensors file is bounded, every value is a finite float, and every failure is one sentence.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from graft.errors import AdapterError
from graft.files import atomic_dir, sync_file, sync_folder
from graft.formats.leaves import shown
from graft.method import Tensors

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
MODEL = "config.json"  # of a whole model
OURS = (CONFIG, WEIGHTS, CARD, TEMPLATE, GENERATION, "adapter.safetensors", "model_head.safetensors")
SAVE_AGAIN = "load it with the tool that made it and save it again as safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "pytorch_adapter.bin")
CARD_MARK = "<!-- Written by Graft, and again at every save. Remove this line to keep a card of your own. -->"
MAX_CONFIG, MAX_HEADER, MAX_BESIDE = 16 << 20, 64 << 20, 1 << 20  # bytes
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_config(folder: Path) -> dict[str, Any]:
    """The config, a JSON object. Raises AdapterError where there is none."""
    if not folder.is_dir():
        raise AdapterError("there is no such folder")
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"no {CONFIG} in this folder: it is no adapter of Graft, HF PEFT or AdapterHub")
    if path.stat().st_size > MAX_CONFIG:
        raise AdapterError(f"{CONFIG} has more than {MAX_CONFIG >> 20} MiB, which no adapter's has")
    try:
        config = json.loads(path.read_bytes(), parse_constant=not_a_number)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG} is not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{CONFIG} is not a JSON object")
    return config


def not_a_number(name: str) -> float:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is no JSON number")


def read_tensors(folder: Path, name: str = WEIGHTS, convert: str = SAVE_AGAIN) -> tuple[Tensors, dict[str, str]]:
    """The tensors by key (on the CPU) and the metadata of the file `name`. Raises AdapterError where they cannot be trusted.

    `convert` says what to do about a pickle.
    """
    path = folder / name
    if not path.is_file():
        pickles = [name for name in PICKLES if (folder / name).is_file()]
        if pickles:
            raise AdapterError(f"it holds only {pickles[0]}, a pickle, which can run any code and is never opened: {convert}")
        raise AdapterError(f"no {name} in this folder")
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{name} cannot be read, it is truncated or damaged: {str(error).splitlines()[0]}") from error
    check_values(tensors, name)
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """A safetensors file's metadata, without its tensors. Raises AdapterError where it cannot be read."""
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path.name} cannot be read, it is truncated or damaged") from error
    return found


def check_header(path: Path) -> None:
    """Raise AdapterError if the header's length cannot be that of an adapter."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise AdapterError(f"{path.name} cannot be read, it is truncated or no safetensors file at all")


def check_values(tensors: Tensors, name: str = WEIGHTS) -> None:
    """Raise AdapterError unless there are tensors and all are finite floats."""
    if not tensors:
        raise AdapterError(f"{name} holds no tensor")
    for key, value in tensors.items():
        if value.dtype not in DTYPES:
            raise AdapterError(f"{shown([key])} is {value.dtype}: an adapter's tensors are floats of 16, 32 or 64 bits")
        if not bool(torch.isfinite(value).all()):
            raise AdapterError(f"{shown([key])} holds values that are not finite: the training that made it went wrong")


def beside(folder: Path) -> dict[str, str]:
    """The texts that travel with an adapter (its chat template, its generation settings), by file name. Raises AdapterError on bad ones."""
    found = {}
    for name in (TEMPLATE, GENERATION):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > MAX_BESIDE:
                raise AdapterError(f"{name} in {folder} has more than {MAX_BESIDE >> 20} MiB, which none has")
            try:
                found[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise AdapterError(f"{name} in {folder} cannot be read as text: {str(error).splitlines()[0]}") from error
    return found


def write(
    folder: Path, config: dict[str, Any], files: dict[str, Tensors], metadata: dict[str, str], card: str, texts: Mapping[str, str]
) -> None:
    """Write config, tensors by file, card and texts beside: all of them or none. Raises AdapterError where nothing could be written."""
    if not any(value.numel() for tensors in files.values() for value in tensors.values()):
        raise AdapterError("an adapter without a single value is not saved")
    for tensors in files.values():
        check_values(tensors)
    target = folder.resolve()
    try:
        with staged(target) as stage:
            for name, tensors in files.items():
                save_file(tensors, stage / name, metadata=metadata)
                os.chmod(stage / name, 0o644)
            (stage / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            for name, text in texts.items():
                (stage / name).write_text(text, encoding="utf-8")
            if is_ours(target / CARD):
                (stage / CARD).write_text(card)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise AdapterError(f"cannot save to {folder}: {reason}; what was there before is unchanged") from error


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files take their places in `folder` when the block ends without an error.

    A folder that is new or holds nothing else is exchanged as a whole; in any other, only these files are replaced, and those of an adapter
    that was there before are removed, which would else be taken for this one's.
    """
    if not folder.exists() or all(path.name in OURS and is_ours(path) for path in folder.iterdir()):
        with atomic_dir(folder) as stage:
            yield stage
        return
    earlier = (folder / CONFIG).is_file() and not (folder / MODEL).exists()  # beside a model some of the names are the model's
    stage = Path(tempfile.mkdtemp(prefix=".adapter.", suffix=".tmp", dir=folder))
    try:
        yield stage
        made = sorted(stage.iterdir(), reverse=True)
        for file in made:
            sync_file(file)
        for file in made:
            os.replace(file, folder / file.name)
        sync_folder(folder)
        for name in {*OURS} - {file.name for file in made} if earlier else ():
            if (folder / name).is_file() and is_ours(folder / name):
                (folder / name).unlink()
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    sync_folder(folder)


def is_ours(path: Path) -> bool:
    """Whether a file may be replaced: always but for a model card that someone else wrote."""
    return path.name != CARD or not path.exists() or (path.is_file() and CARD_MARK in path.read_text(errors="replace"))
