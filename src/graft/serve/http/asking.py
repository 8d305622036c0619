"""Asking: one request's prompts at the engine, from the event loop.

    with desk.asking(body.model, answers) as asking:        refused where there is no such model, or too much is under way
        ids = await asking.thread(...)                      what takes long is done in a thread
        scores = await asking.score(ids, told)              log-probabilities of the prompts themselves
        await asking.submit(ids, sampling)
        async for part in asking.parts(): ...               what is new, of any prompt and answer

When it is left, in whatever way (an error, a caller that has hung up, the time that is over), what still runs is cancelled.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from graft.errors import ServeError
from graft.serve.answers import CANCELLED, Event, Handle, Token, Usage
from graft.serve.engine import Engine
from graft.serve.http.feed import Feed
from graft.serve.http.refusals import Refused, from_engine
from graft.serve.http.settings import Limits
from graft.serve.sampling import Sampling
from graft.serve.scoring import Scored

GRACE = 1.0  # seconds after a request's time in which the engine may say itself that it is over


@dataclass(frozen=True)
class Part:
    """What is new of answer `index` to prompt `prompt`: a token, text that can be shown, or why the answer has ended."""

    prompt: int
    index: int
    token: Token | None
    text: str
    reason: str


class Asking:
    """The prompts of one request. `adapter`: a name, or None for the base; `facts` are for the log.

    `leave` is called when all is done; `hidden` is in no refusal.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        adapter: str | None,
        leave: Callable[[], None],
        pool: Executor,
        facts: dict[str, Any],
        hidden: str = "",
    ) -> None:
        self.engine, self.limits, self.adapter, self.leave = engine, limits, adapter, leave
        self.pool, self.facts, self.hidden = pool, facts, hidden
        self.feed = Feed()
        self.handles: list[Handle] = []
        self.lock = threading.Lock()
        self.closed = False
        self.until = time.monotonic() + limits.seconds

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs, and let the request out of the gate."""
        with self.lock:
            self.closed, handles = True, list(self.handles)
        for handle in handles:
            if handle.open:
                handle.cancel()
        usage = self.usage()
        prompt = usage.prompt + usage.virtual
        self.facts |= {"prompt_tokens": prompt, "virtual_tokens": usage.virtual, "completion_tokens": usage.completion}
        self.leave()

    async def thread(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, done in a thread. Raises Refused where the engine refuses, or the time is over."""
        try:
            return await self.within(asyncio.get_running_loop().run_in_executor(self.pool, work))
        except ServeError as error:
            raise from_engine(error, self.hidden) from error

    async def within(self, work: Any) -> Any:
        """What is awaited, if it comes in time."""
        try:
            async with asyncio.timeout(self.left() + GRACE):
                return await work
        except TimeoutError as error:
            said = f"the answer was not whole within {self.limits.seconds:g} seconds"
            raise Refused(408, f"{said}: ask for fewer tokens, or again when less is under way", code="timeout") from error

    def left(self) -> float:
        """The seconds that are left."""
        return max(0.0, self.until - time.monotonic())

    def keep(self, handle: Handle) -> None:
        """Remember a new handle, or cancel it where nobody waits for it any more. For any thread."""
        with self.lock:
            self.handles.append(handle)
            closed = self.closed
        if closed:
            handle.cancel()

    async def score(self, prompts: Sequence[list[int]], alternatives: int) -> list[Scored]:
        """The scores of texts, given as ids."""
        feed = Feed()

        def begin() -> None:
            for number, ids in enumerate(prompts):
                self.keep(
                    self.engine.submit_scoring(ids, self.adapter, alternatives=alternatives, deadline=self.left(), events=feed.port(number))
                )

        await self.thread(begin)
        found: dict[int, Scored] = {}
        while len(found) < len(prompts):
            for number, event in await self.within(feed.next()):
                if event.scored is None:
                    raise self.failure(event)
                found[number] = event.scored
        for handle in self.handles:
            handle.open.clear()
        return [found[number] for number in range(len(prompts))]

    def fitted(self, sampling: Sampling, ids: list[int]) -> Sampling:
        """The sampling with as many new tokens as fit behind a prompt, and at least one, which the engine then judges."""
        entry = None if self.adapter is None else self.engine.library.entries.get(self.adapter)
        limits = self.engine.limits
        fit = min(limits.context, limits.cached) - len(ids) - (0 if entry is None else entry.virtual)
        return replace(sampling, max_tokens=max(1, min(sampling.max_tokens, self.limits.new_tokens, fit)))

    async def submit(self, prompts: Sequence[list[int]], sampling: Sampling) -> None:
        """Ask for answers to prompts, given as ids; of all that fit as many as are wanted."""

        def begin() -> None:
            self.handles = []
            for number, ids in enumerate(prompts):
                own = self.fitted(sampling, ids)
                self.keep(self.engine.submit(ids, self.adapter, own, deadline=self.left(), events=self.feed.port(number)))

        await self.thread(begin)

    async def parts(self) -> AsyncIterator[Part]:
        """What is new, until all answers have ended. Raises Refused where one failed, or the time is over."""
        while any(handle.open for handle in self.handles):
            for number, event in await self.within(self.feed.next()):
                if event.error is not None or event.reason == CANCELLED:
                    raise self.failure(event)
                handle = self.handles[number]
                if event.index in handle.open:
                    yield part(number, handle, event)

    async def whole(self) -> None:
        """Wait until all answers have ended."""
        async for _ in self.parts():
            pass

    def usage(self) -> Usage:
        """What the prompts and all answers so far took."""
        spent = [handle.spent for handle in self.handles]
        done = sum(len(answer.ids) for handle in self.handles for answer in handle.answers)
        return Usage(sum(one.prompt for one in spent), sum(one.virtual for one in spent), done)

    def failure(self, event: Event) -> Refused:
        """Why a request failed that had begun."""
        if event.error is not None:
            return from_engine(event.error, self.hidden)
        return Refused(409, "the answer was cancelled: its adapter was unloaded", code="cancelled")


def part(number: int, handle: Handle, event: Event) -> Part:
    """What an event adds to its answer."""
    answer = handle.answers[event.index]
    before = len(answer.text)
    token = handle.take(event)
    return Part(number, event.index, token, answer.text[before:], answer.reason)
