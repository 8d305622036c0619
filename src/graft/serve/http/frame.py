"""Frame: what is true of every response: an id, headers that keep browsers from misusing it, one line in the log, and never a traceback."""

import logging
import time
import uuid
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft.serve.http.metrics import Meter
from graft.serve.http.refusals import Refused

log = logging.getLogger("graft.serve.http")
SAFE = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Frame:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self.app, self.meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens inside."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        facts: dict[str, Any] = {"id": uuid.uuid4().hex, "method": scope["method"], "path": scope["path"][:200]}
        scope.setdefault("state", {})["facts"] = facts
        began, status = time.monotonic(), [0]

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = facts["id"]
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, framed)
        except Exception as error:  # a bug, or a refusal of one of the doors
            refused = error if isinstance(error, Refused) else broken(facts)
            if not status[0]:
                await refused.reply()(scope, receive, framed)
        finally:
            self.meter.responses.labels(str(status[0])).inc()
            log.info("request", extra={"facts": facts | {"status": status[0], "seconds": round(time.monotonic() - began, 4)}})


def broken(facts: dict[str, Any]) -> Refused:
    """What is told of a bug; its traceback is for the log alone."""
    log.exception("a request failed", extra={"facts": {"id": facts["id"]}})
    return Refused(500, f"something failed here, and is in the log under {facts['id']}", code="internal")
