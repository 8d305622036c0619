"""A conversation: what was said, by whom, and what goes to a model with the next message."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from graft.chat.backend import Message, Prompt
from graft.errors import ServeError
from graft.files import atomic_write


@dataclass
class Conversation:
    """Pairs of a message and its answer, under a system prompt. `models`: which one gave each answer."""

    system: str = ""
    pairs: list[tuple[str, str]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """All of it, as a chat's messages."""
        start = [{"role": "system", "content": self.system}] if self.system else []
        said = [({"role": "user", "content": asked}, {"role": "assistant", "content": answer}) for asked, answer in self.pairs]
        return [*start, *(message for pair in said for message in pair)]

    def prompt(self, message: str, *, chat: bool) -> Prompt:
        """What a model is asked with a new message: all before it too, or, without a chat template, the message's text alone."""
        return [*self.messages(), {"role": "user", "content": message}] if chat else message

    def add(self, message: str, answer: str, model: str) -> None:
        """Keep a message and its answer."""
        self.pairs.append((message, answer))
        self.models.append(model)

    def before_last(self) -> tuple["Conversation", str]:
        """The conversation as it was before its last message, and that message. Raises ServeError where there is none."""
        if not self.pairs:
            raise ServeError("nothing was asked yet")
        return Conversation(self.system, self.pairs[:-1], self.models[:-1]), self.pairs[-1][0]

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.pairs.clear()
        self.models.clear()

    def save(self, path: Path) -> None:
        """Write it as one JSON line, which `graft train --data` reads as a row. Raises ServeError where a file is there or none can be."""
        if path.exists():
            raise ServeError(f"{path} is there already: choose another name")
        row = {"messages": self.messages(), "models": self.models}
        try:
            atomic_write(path, json.dumps(row, ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            raise ServeError(f"{path} cannot be written: {error}") from error
