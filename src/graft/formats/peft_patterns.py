"""PEFT's `rank_pattern` and `alpha_pattern`: another rank or alpha at some modules, by regular expressions of the ends of paths."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.leaves import shown
from graft.formats.names import checked_pattern, cover

log = logging.getLogger("graft")
MAX_PATTERNS = 10_000


def values(config: dict[str, Any], key: str, paths: Sequence[str], default: Any) -> list[Any]:
    """What the pattern under `key` says for each path. Raises AdapterError where it is none, or says two things of one module."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict) or len(pattern) > MAX_PATTERNS:
        raise AdapterError(f"{key} is no object of at most {MAX_PATTERNS:,} names")
    compiled = {}
    for name, value in pattern.items():
        compiled[name] = re.compile(spelled(checked_pattern(key, name)))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise AdapterError(f"{key} says {shown([name])} = {str(value)[:80]}, which is no number")
    said, used = [], set()
    for path in paths:
        hits = [name for name, expression in compiled.items() if expression.match(path)]
        if len({pattern[name] for name in hits}) > 1:
            raise AdapterError(
                f"{key} says two things of {path} ({shown(hits)}), and which of them counted in training depends on an order that the "
                "file does not keep"
            )
        used.update(hits)
        said.append(pattern[hits[0]] if hits else default)
    idle = [name for name in pattern if name not in used]
    if idle:
        log.warning("the adapter's %s has names that match none of its modules, so they say nothing: %s", key, shown(idle))
    return said


def spelled(name: str) -> str:
    """A pattern's name as the expression that a module's path is matched with from its start."""
    return rf"(.*\.)?({name})$"


def pattern(wanted: dict[str, Any], default: Any) -> dict[str, Any]:
    """The pattern that gives each of the adapted paths its value, by the shortest names."""
    paths = list(wanted)
    others = dict.fromkeys(value for value in wanted.values() if value != default)
    for names in (lambda chosen: cover(chosen, paths), lambda chosen: [re.escape(path) for path in chosen]):
        made = {name: value for value in others for name in names([path for path in paths if wanted[path] == value])}
        if all({made[name] for name in made if re.match(spelled(name), path)} <= {wanted[path]} - {default} for path in paths):
            break
    return made
