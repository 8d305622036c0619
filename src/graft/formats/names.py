"""Module names as HF PEFT's configs use them: a list of endings, or one regular expression over the whole path."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from graft.errors import AdapterError
from graft.formats.leaves import shown
from graft.method import Method, select
from graft.site import Site

MAX_PATTERN, MAX_REPEATS, MAX_NAMES = 4096, 6, 100_000


def names_of(config: dict[str, Any], key: str) -> str | list[str]:
    """A config's names under `key`: a string or a list of strings ([] where absent). Raises AdapterError on anything else."""
    value = config.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return checked_pattern(key, value)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(value) > MAX_NAMES:
            raise AdapterError(f"{key} has {len(value):,} names, more than any model has modules")
        return value
    raise AdapterError(f"{key} is neither a string nor a list of strings")


def checked_pattern(key: str, pattern: str) -> str:
    """The pattern, if matching it ends in time: a repeated group, or many repeats, can take longer than the age of the universe."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError(f"{key} is no regular expression: {error}") from error
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)
    repeats = re.findall(r"(?:[*+{]|(?<!\()\?)[?+]?", plain)
    if re.search(r"\)[*+{]", plain) or len(repeats) > MAX_REPEATS or len(pattern) > MAX_PATTERN:
        said = shown([pattern])
        raise AdapterError(f"{key} repeats a group or too often ({said}), which can take forever to match: list the module names instead")
    return pattern


def ends(path: str, name: str) -> bool:
    """Whether a name is the path or its last components."""
    return path == name or path.endswith(f".{name}")


def matched(names: str | Collection[str], path: str) -> bool:
    """Whether PEFT's `target_modules` or `exclude_modules` name a module; a set of names is asked in the time of one."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    parts = path.split(".")
    return any(".".join(parts[k:]) in names for k in range(len(parts)))


def cover(chosen: Collection[str], everything: Sequence[str]) -> list[str]:
    """The shortest endings that name exactly the chosen of all paths; whole paths where no ending does."""
    wanted = set(chosen)
    alike: dict[str, list[str]] = {}
    for path in everything:
        alike.setdefault(path.rsplit(".", 1)[-1], []).append(path)
    found: dict[str, None] = {}
    for path in everything:
        if path in wanted and not any(ends(path, name) for name in found):
            parts = path.split(".")
            for k in range(1, len(parts) + 1):
                name = ".".join(parts[-k:])
                if all(other in wanted for other in alike[parts[-1]] if ends(other, name)):
                    break
            found[name] = None
    return list(found)


def naming(make: Callable[[tuple[str, ...]], Method], chosen: Sequence[Site], sites: Sequence[Site]) -> Method:
    """The method whose targets are exactly the chosen sites, by the shortest names. Raises AdapterError where it cannot act there."""
    paths = [site.path for site in chosen]
    everything = [site.path for site in sites if site.primary and site.parameters]
    acts: set[Site] = set()
    for targets in (("all-linear",), tuple(cover(paths, everything)), tuple(paths)):
        method = make(targets)
        acts = {site for site in sites if method.at(site)}
        if acts == set(chosen):
            select(method, sites)
            return method
    odd = sorted({site.path for site in acts ^ set(chosen)})
    raise AdapterError(f"{method.kind} cannot act at exactly the modules of this file: {shown(odd)}")
