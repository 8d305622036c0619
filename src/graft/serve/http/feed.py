"""Feed: what the engine's thread reports of one request's handles, brought to the event loop.

The engine's thread puts an event and goes on; the loop is woken once for all that wait, so that a step of the engine that answers hundreds
of streams costs it no thread and few wake-ups.
"""

import asyncio
from collections import deque
from contextlib import suppress

from graft.serve.answers import Event


class Port:
    """Where one handle's events go in, in place of a queue."""

    def __init__(self, feed: "Feed", number: int) -> None:
        self.feed, self.number = feed, number

    def put(self, event: Event) -> None:
        """Take an event from any thread."""
        self.feed.put(self.number, event)


class Feed:
    """Events of several handles, for one task of the loop that makes it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.waiting: deque[tuple[int, Event]] = deque()
        self.woken = False

    def port(self, number: int) -> Port:
        """A way in, for the handle of this number."""
        return Port(self, number)

    def put(self, number: int, event: Event) -> None:
        """Take an event from any thread."""
        self.waiting.append((number, event))
        if not self.woken:
            self.woken = True
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                self.loop.call_soon_threadsafe(self.ready.set)

    async def next(self) -> list[tuple[int, Event]]:
        """All events that have come, at least one."""
        while True:
            await self.ready.wait()
            self.ready.clear()
            self.woken = False  # before the events are taken: one that comes meanwhile wakes again, for nothing at worst
            found = [self.waiting.popleft() for _ in range(len(self.waiting))]
            if found:
                return found
