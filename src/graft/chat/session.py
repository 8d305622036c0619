"""A chat from its first line to its last: lines are commands or messages, and messages get answers."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from graft.chat import commands
from graft.chat.backend import Answer, Backend, Model, Stream
from graft.chat.conversation import Conversation
from graft.chat.screen import complain, plain, show_both, show_one
from graft.chat.settings import DEFAULTS
from graft.errors import GraftError, ServeError

Reader = Callable[[str], str]


class Session:
    """One chat. `read` returns the next line for a prompt, and raises EOFError at the end, as `input` does."""

    def __init__(self, backend: Backend, console: Console, read: Reader, adapter: str = "") -> None:
        """Raises ServeError where nothing answers, or there is no such adapter."""
        self.backend, self.console, self.read = backend, console, read
        self.talk = Conversation()
        self.settings: dict[str, Any] = dict(DEFAULTS)
        self.models: list[Model] = []
        self.over = False
        self.refresh()
        if not self.models:
            raise ServeError(f"{backend.where} has no model")
        self.current = self.model(adapter).name if adapter else self.models[0].name

    def refresh(self) -> None:
        """Look again what models there are."""
        self.models = self.backend.models()

    def model(self, name: str) -> Model:
        """The model of a name. Raises ServeError where there is none."""
        found = next((one for one in self.models if one.name == name), None)
        if found is None:
            names = ", ".join(one.name for one in self.models[:12]) + (", ..." if len(self.models) > 12 else "")
            raise ServeError(f"there is no model {name!r} at {self.backend.where}: there are {names}")
        return found

    def say(self, text: str) -> None:
        """A remark of the program's own."""
        self.console.print(Text(plain(text), style="dim"))

    def run(self) -> None:
        """Read and answer until the end."""
        adapters = sum(not one.is_base for one in self.models)
        self.say(
            f"{self.backend.where}: {self.models[0].name}, {adapters} adapter{'' if adapters == 1 else 's'}. /help lists the commands."
        )
        if not self.models[0].chat:
            self.say("this base has no chat template: each message is a prompt of its own")
        while not self.over:
            try:
                line = self.line()
            except EOFError:
                break
            except KeyboardInterrupt:
                self.console.print()
                self.say("Ctrl-D or /quit leaves")
                continue
            self.take(line)

    def line(self) -> str:
        """The next line; one that ends with a backslash goes on."""
        line = self.read(f"{self.current}> ")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + self.read("  ")
        return line

    def take(self, line: str) -> None:
        """Do what a line says."""
        try:
            if line.startswith("/"):
                commands.run(self, line)
            elif line.strip():
                self.ask(line)
        except GraftError as error:
            complain(self.console, str(error))

    def ask(self, message: str, talk: Conversation | None = None) -> None:
        """Ask the current model, after `talk` or all that was said, and keep what it answers; of one that failed nothing is kept."""
        talk, answer = talk or self.talk, Answer(self.current)
        show_one(self.console, answer, self.stream(self.current, talk, message))
        if not answer.error and answer.text:
            talk.add(message, answer.text, self.current)
            self.talk = talk

    def ask_all(self, names: Sequence[str], message: str) -> None:
        """Ask several models the same, a new message or (where it is empty) the last one; nothing is kept."""
        self.refresh()
        models = [self.model(name).name for name in names]
        talk, message = (self.talk, message) if message else self.talk.before_last()
        show_both(self.console, [Answer(name) for name in models], [self.stream(name, talk, message) for name in models])

    def stream(self, name: str, talk: Conversation, message: str) -> Stream:
        """An answer on its way."""
        return self.backend.ask(name, talk.prompt(message, chat=self.model(name).chat), self.settings)
