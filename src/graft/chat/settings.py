"""Sampling settings of a chat: names as the API has them, values as a user types them."""

from collections.abc import Callable
from typing import Any

from graft.errors import ServeError

KINDS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "max_tokens": int,
    "seed": int,
    "stop": lambda text: [text.encode().decode("unicode_escape") if text.isascii() else text],
}
DEFAULTS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 256}
UNSET = ("none", "default")


def changed(settings: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    r"""Settings with one changed; "none" or "default" gives it back. Raises ServeError where there is no such setting or value.

    A stop text may be written with escapes, as \n for a line's end.
    """
    name = name.replace("-", "_")
    if name not in KINDS:
        raise ServeError(f"there is no setting {name!r}: there are {', '.join(KINDS)}")
    rest = {key: kept for key, kept in settings.items() if key != name}
    if value.lower() in UNSET:
        return rest | ({name: DEFAULTS[name]} if name in DEFAULTS else {})
    try:
        return rest | {name: KINDS[name](value)}
    except ValueError as error:
        raise ServeError(f"{name} = {value!r} cannot be: it takes a number such as {name} 1") from error


def words(settings: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{name} {settings.get(name, 'not set')}" for name in KINDS)
