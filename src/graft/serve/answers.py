"""What a caller gets: tokens as they come, and the whole answer with what it cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from torch import Tensor

from graft.errors import ServeError
from graft.serve.sampling import Sampling, read

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet
STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


@dataclass(frozen=True)
class Token:
    """A token of answer `index`; `logprob` and the likeliest `alternatives` (id, log-probability) where they were asked for.

    `text` is what can be shown since the token before: half a character waits for its rest, and so does what may become a stop text.
    """

    index: int
    id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of the text, virtual tokens of the adapter before it, and tokens answered (all n answers).

    Virtual tokens take positions of the context and places in the cache as any others: they are counted, beside the text's.
    """

    prompt: int
    virtual: int
    completion: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.prompt + self.virtual + self.completion


@dataclass
class Answer:
    """One of n answers. `reason` why it ended: "stop" (end of sequence or a stop text), "length" or "cancelled"."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = ""
    tokens: list[Token] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """All answers of a request, and its usage."""

    answers: tuple[Answer, ...]
    usage: Usage

    @property
    def ids(self) -> list[int]:
        """The first answer's tokens."""
        return self.answers[0].ids

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.answers[0].text


class Text:
    """Turns tokens into text one by one, cut at the first stop text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.start = self.shown = 0  # ids before `start` are done with, and those before `shown` are in the text
        self.waiting = ""  # text that may become a stop text
        self.ended = False

    def push(self, number: int) -> str:
        """What can be shown now."""
        if self.tokenizer is None or self.ended:
            return ""
        self.ids.append(number)
        before, now = self.decoded(self.ids[self.start : self.shown]), self.decoded(self.ids[self.start :])
        if now.endswith(UNFINISHED):
            return ""
        if now != before:  # else a special token, which is no text: the next one is still read after the word before it
            self.start = self.shown
        self.shown = len(self.ids)
        return self.cut(self.waiting + now[len(before) :])

    def cut(self, text: str) -> str:
        """Text up to a stop text, less what may become one."""
        places = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if places:
            self.ended, self.waiting = True, ""
            return text[: min(places)]
        longest = max((k for stop in self.stop for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)
        self.waiting = text[len(text) - longest :] if longest else ""
        return text[: len(text) - longest] if longest else text

    def rest(self) -> str:
        """What was held back, at the end."""
        if self.tokenizer is None or self.ended:
            return ""
        before, now = self.decoded(self.ids[self.start : self.shown]), self.decoded(self.ids[self.start :])
        return self.cut(self.waiting + now[len(before) :]) + ("" if self.ended else self.waiting)

    def decoded(self, ids: list[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


@dataclass(frozen=True)
class Event:
    """What the engine reports of answer `index`: a token and its outputs, the text where it was made already, or an end; or scores."""

    index: int
    id: int = -1
    row: Tensor | None = None
    text: str | None = None
    reason: str = ""
    error: ServeError | None = None
    scored: Any = None


class Sink(Protocol):
    """Where the engine's thread puts what it reports; it must not wait there."""

    def put(self, item: Event, /) -> None:
        """Take an event."""


class Handle:
    """A request on its way. Iterate over its tokens, or ask for the result; for one caller at a time.

    Where its events go to a sink of the caller's, each is to be given to `take` instead, in order.
    """

    def __init__(self, sampling: Sampling, usage: Usage, tokenizer: Any, cancel: Callable[[], None], events: Sink | None = None) -> None:
        self.sampling, self.tokenizer, self.cancel = sampling, tokenizer, cancel
        self.spent = usage
        self.own: SimpleQueue[Event] = SimpleQueue()
        self.events: Sink = self.own if events is None else events
        self.answers = [Answer() for _ in range(sampling.n)]
        self.texts = [Text(tokenizer, ()) for _ in range(sampling.n)]
        self.open = set(range(sampling.n))

    def __iter__(self) -> Iterator[Token]:
        """The tokens as they come. Raises ServeError where the request failed."""
        while self.open:
            token = self.take(self.own.get())
            if token is not None:
                yield token

    def result(self, timeout: float | None = None) -> Result:
        """The whole answer, waited for up to `timeout` seconds. Raises ServeError where it failed or did not come in time."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.open:
            try:
                self.take(self.own.get(timeout=None if until is None else max(0.0, until - time.monotonic())))
            except Empty as error:
                raise ServeError(f"no whole answer within {timeout} seconds; cancel() ends the request") from error
        return self.whole()

    def whole(self) -> Result:
        """All that was answered until now."""
        done = sum(len(answer.ids) for answer in self.answers)
        return Result(tuple(self.answers), Usage(self.spent.prompt, self.spent.virtual, done))

    def scored(self) -> Any:
        """The scores of a text, waited for."""
        event = self.own.get()
        if event.error is not None:
            raise event.error
        return event.scored

    def take(self, event: Event) -> Token | None:
        """Add what the engine reported to the answer."""
        if event.error is not None:
            self.open.clear()
            raise event.error
        answer = self.answers[event.index]
        if event.index not in self.open:
            return None
        if event.reason:
            answer.reason = event.reason
            answer.text += event.text if event.text is not None else self.texts[event.index].rest()
            self.open.discard(event.index)
            return None
        text = event.text if event.text is not None else self.texts[event.index].push(event.id)
        count = self.sampling.logprobs
        logprob, others = (None, []) if count is None or event.row is None else read(event.row, count)
        token = Token(event.index, event.id, text, logprob, tuple(others))
        answer.ids.append(event.id)
        answer.text += text
        answer.tokens.append(token)
        return token
