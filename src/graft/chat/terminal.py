"""The line a user types: with the terminal's own editing, history (of this session; nothing is written) and completion by Tab."""

import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from graft.chat.backend import Backend
from graft.chat.commands import COMMANDS
from graft.chat.session import Session

try:
    import readline
except ImportError:  # Windows has its own
    readline = None  # type: ignore[assignment]

BOLD_GREEN, PLAIN = "\001\033[1;32m\002", "\001\033[0m\002"  # between \001 and \002: what takes no room on the line


def completions(text: str, line: str, names: Sequence[str]) -> list[str]:
    """What the word `text` at the end of a line may become: a command at its start, a model's name after /adapter and /both."""
    if line.startswith("/") and " " not in line:
        return [f"/{name} " for name in COMMANDS if f"/{name}".startswith(text)]
    if line.startswith(("/adapter ", "/both ")):
        return [f"{name} " for name in names if name.startswith(text)]
    return []


def read_line(prompt: str) -> str:
    """The next line, typed or piped in. Raises EOFError at the end."""
    if not sys.stdin.isatty():
        return input()
    return input(f"{BOLD_GREEN}{prompt}{PLAIN}" if readline else prompt)


def complete_with(names: Callable[[], list[str]]) -> None:
    """Let Tab complete commands and names."""
    if readline is None:
        return

    def complete(text: str, state: int) -> str | None:
        found = completions(text, readline.get_line_buffer(), names())
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


def chat(backend: Backend, console: Console, adapter: str = "") -> None:
    """Chat in this terminal until the user leaves. Raises ServeError where nothing answers, or there is no such adapter."""
    session = Session(backend, console, read_line, adapter)
    complete_with(lambda: [one.name for one in session.models])
    session.run()
