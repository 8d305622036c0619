"""The commands of a chat: lines that begin with a slash."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from graft.chat import settings
from graft.chat.screen import show_models
from graft.errors import ServeError

if TYPE_CHECKING:
    from graft.chat.session import Session


@dataclass(frozen=True)
class Command:
    """What a command is called with, what it does in words, and what it does. `run` gets the rest of the line."""

    usage: str
    help: str
    run: Callable[["Session", str], None]


def switch(session: "Session", name: str) -> None:
    """Another model for what is asked from here on."""
    session.refresh()
    if not name:
        raise ServeError("name the adapter to switch to, as in /adapter NAME; /adapters lists them")
    session.current = session.model(name).name


def adapters(session: "Session", _: str) -> None:
    """All models."""
    session.refresh()
    show_models(session.console, session.models, session.current)


def both(session: "Session", rest: str) -> None:
    """Two models, one message."""
    names, message = rest.split(None, 2)[:2], "".join(rest.split(None, 2)[2:])
    if len(names) != 2:
        raise ServeError("name two models, as in /both A B, and the message where it is a new one")
    session.ask_all(names, message)


def retry(session: "Session", _: str) -> None:
    """The last message again."""
    talk, message = session.talk.before_last()
    session.ask(message, talk)


def system(session: "Session", text: str) -> None:
    """Set, show or remove the system prompt."""
    if text:
        session.talk.system = "" if text.lower() in settings.UNSET else text
    session.say(f"system prompt: {session.talk.system or 'none'}")


def set_one(session: "Session", rest: str) -> None:
    """Set, or show all."""
    name, _, value = rest.partition(" ")
    if value.strip():
        session.settings = settings.changed(session.settings, name, value.strip())
    session.say(settings.words(session.settings))


def reset(session: "Session", _: str) -> None:
    """Forget."""
    session.talk.clear()
    session.say("a new conversation")


def save(session: "Session", rest: str) -> None:
    """Write the conversation."""
    if not rest:
        raise ServeError("name the file to write, as in /save talk.jsonl")
    path = Path(rest).expanduser()
    session.talk.save(path)
    session.say(f"wrote {path}")


def help_all(session: "Session", _: str) -> None:
    """All commands."""
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"/{name} {command.usage}".rstrip(), style="green"), Text(command.help))
    session.console.print(table)
    session.say("Ctrl-C stops an answer, Ctrl-D leaves; a line that ends with \\ goes on in the next")


def leave(session: "Session", _: str) -> None:
    """End the chat."""
    session.over = True


COMMANDS = {
    "adapter": Command("NAME", "switch to an adapter, or to the base by its name; the conversation stays", switch),
    "adapters": Command("", "list the base and its adapters with their methods", adapters),
    "both": Command("A B [MESSAGE]", "ask two models, the last message where none is given; neither answer is kept", both),
    "retry": Command("", "ask the last message again, with what is chosen and set now", retry),
    "system": Command("[TEXT]", "set the system prompt, or show it; none removes it", system),
    "set": Command("[NAME VALUE]", "set temperature, top_p, top_k, max_tokens, seed or stop, or show them", set_one),
    "reset": Command("", "begin a new conversation", reset),
    "save": Command("FILE", "write the conversation as a row that `graft train --data` reads", save),
    "help": Command("", "list these commands", help_all),
    "quit": Command("", "leave", leave),
}


def run(session: "Session", line: str) -> None:
    """Run a line that begins with a slash. Raises ServeError where there is no such command, naming one that is like it."""
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        raise ServeError(f"there is no command /{name}: " + (f"did you mean /{close[0]}?" if close else "/help lists them"))
    COMMANDS[name].run(session, rest.strip())
