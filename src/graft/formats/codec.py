"""Codec: how one of PEFT's types and our methods are written as each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graft.formats.ground import Ground
from graft.formats.keys import Keys
from graft.formats.leaves import Leaf
from graft.method import Method, Tensors
from graft.site import Site

ANY = ("auto_mapping", "peft_version", "revision", "inference_mode", "base_model_name_or_path", "runtime_config")
ALL = ("peft_type", "task_type", "modules_to_save")

Chosen = tuple[Method, list[Site]]  # one part of an adapter without its tensors


def as_they_are(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """The file's tensors themselves."""
    return tensors


@dataclass(frozen=True)
class Codec:
    """`root` begins every tensor's key. `config` gives the foreign config's own fields, or None where PEFT has no form for these
    parts; `parts` reads them back, with the keys of the file's tensors at hand; `leaves` pairs one part's tensors. `prepare` makes
    the file's tensors into those that the leaves name.
    """

    peft_type: str
    root: str
    keys: Keys
    config: Callable[[Sequence[Chosen], Ground], dict[str, Any] | None]
    parts: Callable[[dict[str, Any], Ground, Sequence[str]], list[Chosen]]
    leaves: Callable[[Method, Sequence[Site], Ground], list[Leaf]]
    prepare: Callable[[dict[str, Any], Tensors], Tensors] = as_they_are


def read_only(parts: Sequence[Chosen], ground: Ground) -> None:
    """The `config` of a type that is read as a method which is written as another type."""
