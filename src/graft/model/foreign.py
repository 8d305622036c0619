"""Calling transformers: its noise kept down while Graft loads or saves, its failures turned into one clear sentence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils.logging import EmptyTqdm, get_verbosity, set_tqdm_hook, set_verbosity, set_verbosity_error

from graft.errors import GraftError, ModelError

NOISY = ("bitsandbytes",)  # tells at import which optional kernels it did not find


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars in the block; bars of hub downloads stay, and all is restored after it."""
    before, hook = get_verbosity(), set_tqdm_hook(lambda _, args, __: EmptyTqdm(*args))
    levels = {name: logging.getLogger(name).level for name in NOISY}
    set_verbosity_error()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)
        set_tqdm_hook(hook)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def as_model_error(name: str, way_out: str) -> Iterator[None]:
    """Turn what transformers raises over a model it cannot find, read or build into a ModelError that names `name` and `way_out`."""
    try:
        yield
    except GraftError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{name} does not fit in the accelerator's memory: load it in 4 bits (nf4), or on the CPU") from error
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError, SafetensorError) as error:
        raise ModelError(f"cannot load {name} ({reason(error)}): {way_out}") from error


def reason(error: BaseException) -> str:
    """The first sentence of an exception's message, on one line of at most 200 characters."""
    text: Any = " ".join(str(error).split()) or type(error).__name__
    sentence = str(text).split(". ")[0].rstrip(".:")
    return sentence if len(sentence) <= 200 else sentence[:199] + "…"
