"""A command's settings from three sources: its defaults, a YAML file with the same names, and the options that were given."""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from graft.errors import DataError

KINDS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,), list: (list,)}


def merged_config(values: dict[str, Any], given: Collection[str], file: Path | None) -> dict[str, Any]:
    """`values` (defaults and options) with the file's values in place of defaults.

    Raises DataError if the file cannot be read or holds a key that the command does not have, naming the closest one it has.
    """
    if file is None:
        return values
    try:
        loaded = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{file} must hold NAME: VALUE lines")
    found = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    for key, value in found.items():
        if key not in values:
            close = difflib.get_close_matches(key, values, 1)
            raise DataError(
                f"{file}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else f"; it may hold {', '.join(values)}")
            )
        check_kind(file, key, value, values[key])
    return values | {key: value for key, value in found.items() if key not in given}


def check_kind(file: Path, key: str, value: Any, default: Any) -> None:
    """Raise DataError if a value is not of its default's kind; where the default is nothing, any plain value may stand."""
    kinds = KINDS.get(type(default), (str, int, float))
    if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise DataError(f"{file}: {key} is {value!r}, which is not what {key} takes (its default is {default!r})")
