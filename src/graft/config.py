"""A command's settings from three sources: its defaults, a YAML file with the same names, and the options that were given."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from graft.errors import DataError


def merged_config(values: dict[str, Any], given: Collection[str], file: Path | None, hints: Mapping[str, Any]) -> dict[str, Any]:
    """`values` (defaults and options) with the file's values in place of defaults, each of the type that its option takes (`hints`).

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
        found[key] = typed(file, key, value, hints[key], values[key])
    return values | {key: value for key, value in found.items() if key not in given}


def typed(file: Path, key: str, value: Any, hint: Any, default: Any) -> Any:
    """A file's value as its option takes it. Raises DataError where it cannot be one."""
    if get_origin(hint) is list:
        return [typed(file, key, one, str, default) for one in (value if isinstance(value, list) else [value])]
    kind = next(one for one in (*get_args(hint), hint) if one is not NoneType)
    try:
        if isinstance(value, bool) == (kind is bool) and isinstance(value, READ[kind]):
            return kind(value)
    except ValueError:
        pass
    raise DataError(f"{file}: {key} is {value!r}, which is not what {key} takes (its default is {default!r})")


READ: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int, str), float: (int, float, str), str: (str, int, float)}
"""What may stand in a file for an option of a type: numbers as text too, since YAML takes 2e-3 for text."""
