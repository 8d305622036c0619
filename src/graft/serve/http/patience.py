"""How long a connection is waited for: one that sends nothing, or the head of a request slowly, is a place that others cannot have."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class Patience(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """uvicorn's protocol, which hangs up where no head of a request has arrived in time.

    That is `seconds` after the connection was made, or after the first bytes behind a response; without such bytes uvicorn does so itself.
    """

    seconds = 30.0
    alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self.wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, or no longer."""
        super().data_received(data)
        self.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        super().connection_lost(exc)
        self.rest()

    def wait(self) -> None:
        """Set the alarm where a head is to come, from the time at which that was first so."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.rest()
        elif self.alarm is None:
            self.alarm = self.loop.call_later(self.seconds, self.hang_up, self.cycle)

    def rest(self) -> None:
        """Turn the alarm off."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None

    def hang_up(self, before: Any) -> None:
        """Close, unless there was a request since."""
        self.alarm = None
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()


def patient(seconds: float) -> type[Any]:
    """The protocol with so much patience."""
    return type("Patience", (Patience,), {"seconds": seconds})
