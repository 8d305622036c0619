"""The full digest of a base model: SHA-256 over the name, dtype, shape and every byte of what it holds, one tensor at a time.

Parameters and persistent buffers enter, packed 4-bit bytes with their quantisation state, and which names are tied; Graft's own tensors
do not. A fingerprint samples, is the same in every precision and tells bases apart; a digest proves that one base was not touched.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from graft.errors import ModelError
from graft.kernels import nf4

SHOWN = 3


def digest(model: nn.Module) -> str:
    """The base's digest in 64 hex digits, the same with an adapter attached and without.

    Raises ModelError where a tensor has no bytes here (it is on the meta device).
    """
    return whole(digests(model))


def whole(parts: Mapping[str, str]) -> str:
    """One digest of all tensors' digests."""
    return hashlib.sha256(json.dumps(list(parts.items())).encode()).hexdigest()


def digests(model: nn.Module) -> dict[str, str]:
    """The digest of each of the base's tensors, by name."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, value in held(model):
        tie = first.setdefault(id(value), name)
        found[name] = of_tensor(name, value) if tie == name else f"tied to {tie}"
    return found


def held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The base's parameters and persistent buffers, in the model's order, tied ones under each name."""
    for path, module in model.named_modules(remove_duplicate=False):
        if "graft" in path.split("."):
            continue
        saved = {name: value for name, value in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for name, value in [*module._parameters.items(), *saved.items()]:
            if value is not None:
                yield f"{path}.{name}" if path else name, value


def of_tensor(name: str, value: Any) -> str:
    """The digest of one tensor, a packed one's quantisation state included."""
    total = hashlib.sha256()
    state = nf4.state(value) if nf4.is_packed(value) else {}
    for key, part in {"": value.detach(), **state}.items():
        if isinstance(part, Tensor):
            if part.is_meta:
                raise ModelError(f"{name} is on the meta device and has no bytes to digest: load the model's weights first")
            total.update(f"{key} {part.dtype} {list(part.shape)}\n".encode())
            total.update(raw(part))
        else:
            total.update(f"{key} {part}\n".encode())
    return total.hexdigest()


def raw(value: Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it lies in one piece on the CPU."""
    return value.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Which tensors differ, in words; empty if none does."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
