"""Codec: how one of PEFT's types and one form of ours are written as each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graft.formats.ground import Ground
from graft.formats.keys import Keys
from graft.formats.leaves import Leaf
from graft.method import Method
from graft.site import Site

ANY = ("auto_mapping", "peft_version", "revision", "inference_mode", "base_model_name_or_path", "runtime_config")
ALL = ("peft_type", "task_type", "modules_to_save")


@dataclass(frozen=True)
class Codec:
    """`root` begins every tensor's key. `config` gives the foreign config's own fields, or None where PEFT has no form for the
    method at these sites; `method` reads them back, with the keys of the file's tensors at hand; `leaves` pairs the tensors.
    """

    peft_type: str
    root: str
    keys: Keys
    config: Callable[[Method, Sequence[Site], Ground], dict[str, Any] | None]
    method: Callable[[dict[str, Any], Ground, Sequence[str]], tuple[Method, list[Site]]]
    leaves: Callable[[Method, Sequence[Site], Ground], list[Leaf]]
