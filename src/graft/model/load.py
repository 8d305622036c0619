"""Finding and loading a base model: a hub id, a local folder, a `.gguf` file, or the alias `smollm2`.

Nothing is fetched unless a hub id is named, no code from a model's own repository is ever run, and weights are read from safetensors only.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from graft.errors import ModelError
from graft.kernels import nf4 as kernel
from graft.kernels.nf4.reference import MISSING
from graft.model.foreign import as_model_error, quiet
from graft.model.gguf import BROKEN, NOTE, SMOLLM2, cache_folder, converted, ensure_pad, gguf_file, require_gguf

CHOICES = f"name a folder written by save_pretrained, a .gguf file, a hub id (owner/name) or {SMOLLM2}"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BF16_CPU = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Loaded:
    """A base model ready for use; `note` says what its weights went through (`dequantised from Q4_1`), or is empty."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    note: str


def load(name: str, *, dtype: torch.dtype | None = None, nf4: bool = False, device: str | torch.device = "auto") -> Loaded:
    """Load the base model `name` with its tokenizer, in evaluation mode, on `device` ("auto": the accelerator if there is one).

    `dtype` None means `default_dtype(device)`. With `nf4` the linear layers are stored in 4 bits (bitsandbytes, double quantisation)
    and computed in `dtype`. Raises ModelError if the model cannot be found, read or held.
    """
    target = pick_device(device)
    dtype = default_dtype(target) if dtype is None else dtype
    if target.type == "cpu" and dtype == torch.float16:
        raise ModelError("float16 is up to 200 times slower than bfloat16 on a CPU: use bfloat16 or float32")
    source, note = resolve(name)
    kwargs: dict[str, Any] = {"quantization_config": nf4_config(dtype), "device_map": {"": target}} if nf4 else {}
    with quiet(), as_model_error(name, way_out(source)):
        config = read_config(source)
        kind = auto_class(config, name)
        model = kind.from_pretrained(source, config=config, dtype=dtype, use_safetensors=True, **options(source), **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(source, **options(source))
        model = model if nf4 else model.to(target)
    if gguf_file(name) is not None:
        model.config.name_or_path = name  # what adapters note as their base, and not a folder of this machine's cache
    if kernel.own_forwards(model):
        note = "; ".join(part for part in (note, "linear layers in 4 bits (NF4)") if part)
    ensure_pad(tokenizer, model)
    return Loaded(model.eval(), tokenizer, name, note)


def config_of(name: str) -> PretrainedConfig:
    """The configuration of the base model `name` without its weights: of a GGUF file not yet converted, from its header.

    Raises ModelError if the model cannot be found or its configuration cannot be read.
    """
    file = gguf_file(name)
    if file is None or cache_folder(file).is_dir():
        source = resolve(name)[0]
        with quiet(), as_model_error(name, way_out(source)):
            return read_config(source)
    require_gguf()
    with quiet(), as_model_error(name, BROKEN):
        config: PretrainedConfig = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    return config


def resolve(name: str) -> tuple[str, str]:
    """The folder or hub id that holds `name`'s safetensors, and the note on them; a GGUF file is converted on its first use.

    Raises ModelError if `name` is a path to nothing, or to something that is no model.
    """
    if not name.strip():
        raise ModelError(f"the model has no name: {CHOICES}")
    file = gguf_file(name)
    if file is not None:
        folder = str(converted(file))
        return folder, getattr(read_config(folder), NOTE, "")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {name} has no config.json: {CHOICES}")
        return str(path), ""
    if path.exists():
        raise ModelError(f"{name} is a file, and not a .gguf file: {CHOICES}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model at {name!r}: {CHOICES}")
    return name, ""


def options(source: str) -> dict[str, Any]:
    """What every call to transformers gets: no network for a local folder, and never code from a model's repository."""
    return {"local_files_only": Path(source).is_dir(), "trust_remote_code": False}


def way_out(source: str) -> str:
    """What to do when `source` cannot be loaded."""
    if Path(source).is_dir():
        return "the folder must hold config.json, *.safetensors and tokenizer files of an architecture that transformers knows"
    return f"check the id and the network, or {CHOICES}"


def read_config(source: str) -> PretrainedConfig:
    """The configuration in a folder or under a hub id."""
    config: PretrainedConfig = AutoConfig.from_pretrained(source, **options(source))
    return config


def auto_class(config: PretrainedConfig, name: str) -> Any:
    """The transformers class to build a model with: for causal language models, or for sequence classification.

    Raises ModelError for encoder-decoders, and for encoders without a classification head.
    """
    if config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder ({config.model_type}), which Graft does not support: name a decoder or an encoder")
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification
    if architecture.endswith(("ForMaskedLM", "ForPreTraining")) and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{name} is an encoder without a classification head ({architecture}): load it with transformers' "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=N), save it, and name that folder"
        )
    return AutoModelForCausalLM


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Four bits, NF4, double quantisation, computing in `dtype`. Raises ModelError if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(MISSING)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def pick_device(device: str | torch.device) -> torch.device:
    """The torch device that `device` means; "auto" is the accelerator if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype that a command's option names; None for "auto". Raises ModelError on any other."""
    if name not in DTYPES:
        raise ModelError(f"{name!r} is no dtype that a base is held in: it is {', '.join(DTYPES)}")
    return DTYPES[name]


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where `device` computes in it faster than in float32 (by its own instructions), else float32."""
    return torch.bfloat16 if computes_bf16(device) else torch.float32


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has bfloat16 arithmetic of its own, not an emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(cpu_capabilities().get(flag, False) for flag in BF16_CPU)
    return device.type == "xpu"


def cpu_capabilities() -> dict[str, Any]:
    """What torch knows of the CPU's instructions; nothing, in releases that do not say."""
    ask = getattr(torch.cpu, "get_capabilities", dict)
    return dict(ask())


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the base model `name`, without its weights. Raises ModelError as `load` does."""
    source, _ = resolve(name)
    with quiet(), as_model_error(name, way_out(source)):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options(source))
    return tokenizer
