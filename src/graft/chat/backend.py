"""What a chat needs of what answers it, be that a server or an engine in this process, and how several answers are read at once."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

from graft.errors import GraftError

Message = dict[str, str]
Prompt = str | list[Message]


@dataclass(frozen=True)
class Model:
    """A base or one of its adapters. `methods`, `virtual` tokens and `bytes` are known once it was read; `chat`: it has a template."""

    name: str
    is_base: bool
    methods: str = ""
    virtual: int = 0
    bytes: int = 0
    chat: bool = True


@dataclass(frozen=True)
class Piece:
    """What is new of an answer, and how many tokens it has so far."""

    text: str
    tokens: int


class Stream(Protocol):
    """An answer on its way. Iterating asks for it, waits, and raises ServeError where it fails."""

    reason: str

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come."""

    def cancel(self) -> None:
        """End it, from any thread and at any time."""


class Backend(Protocol):
    """What answers. `where` says in words what it is."""

    where: str

    def models(self) -> list[Model]:
        """What there is, the base first. Raises ServeError where that cannot be told."""

    def ask(self, model: str, prompt: Prompt, sampling: dict[str, Any]) -> Stream:
        """An answer of a model to a text or a chat's messages; `sampling` in the API's names."""


@dataclass
class Answer:
    """One answer as it was read: its text, the end's reason or the error, and when its tokens came (seconds since it was asked for)."""

    model: str
    text: str = ""
    reason: str = ""
    error: str = ""
    tokens: int = 0
    before: int = 0
    first: float = 0.0
    last: float = 0.0
    start: float = field(default_factory=time.monotonic)

    def take(self, piece: Piece) -> None:
        """Add what came."""
        self.text += piece.text
        if piece.tokens > self.tokens:
            self.last = time.monotonic() - self.start
            if not self.tokens:
                self.first, self.before = self.last, piece.tokens
            self.tokens = piece.tokens

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first, which came with the prompt's own forward."""
        return (self.tokens - self.before) / (self.last - self.first) if self.last > self.first else None


def read_all(answers: Sequence[Answer], streams: Sequence[Stream]) -> Iterator[tuple[int, Piece]]:
    """Read streams at once, each in a thread, into answers; (number, piece) as they come.

    An error ends its own stream only and is left in its answer. Leaving the iteration, as Ctrl-C does, cancels what has not ended.
    """
    events: SimpleQueue[tuple[int, Piece | None]] = SimpleQueue()

    def pump(number: int, answer: Answer, stream: Stream) -> None:
        try:
            for piece in stream:
                events.put((number, piece))
            answer.reason = stream.reason
        except (GraftError, OSError) as error:
            answer.error = str(error)
        events.put((number, None))

    for number, (answer, stream) in enumerate(zip(answers, streams, strict=True)):
        threading.Thread(target=pump, args=(number, answer, stream), daemon=True).start()
    running = len(answers)
    try:
        while running:
            number, piece = events.get()
            if piece is None:
                running -= 1
                continue
            answers[number].take(piece)
            yield number, piece
    finally:
        for stream in streams:
            stream.cancel()
