"""Streams of server-sent events, and requests whose caller hangs up.

    data: {...}             one event, a JSON object
    data: [DONE]            the last

Starlette's own streaming response leaves it to the server whether a caller that has gone is noticed while nothing is sent; here it always
is, so that what nobody waits for is cancelled at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from graft.serve.http.asking import Asking
from graft.serve.http.refusals import ErrorReply, Refused, documented, event

DONE = "data: [DONE]\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def described(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What the document says of the responses of an endpoint whose events hold a `chunk`."""
    inside = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in (chunk.__name__, ErrorReply.__name__)]}
    json = {"type": "string", "contentMediaType": "application/json", "contentSchema": inside}
    item = {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [{"const": "[DONE]"}, json]}}}
    text = f"The answer; with stream, events of it ({chunk.__name__}, or ErrorReply where it fails), and [DONE]."
    ok = {"description": text, "content": {"text/event-stream": {"itemSchema": item}}}
    return {200: ok, **documented(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)}


class HungUp(Exception):
    """The caller has gone."""


async def hung_up(receive: Receive) -> None:
    """Wait until the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_hung_up(receive: Receive, work: Awaitable[Any]) -> Any:
    """What is awaited; where the caller goes before it comes it is cancelled. Raises HungUp then."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(hung_up(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HungUp
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


async def answered(request: Request, work: Awaitable[Response]) -> Response:
    """A response that is made while the caller waits; an empty one that nobody reads where it does not."""
    try:
        response: Response = await unless_hung_up(request.receive, work)
    except HungUp:
        return Response(status_code=499)
    return response


async def conducted(asking: Asking, begin: Awaitable[None], whole: Callable[[], BaseModel], events: AsyncIterator[str] | None) -> Response:
    """A request's response: its events where there are any, else its whole answer. `asking` is closed when that is over."""
    try:
        await begin
        if events is not None:
            return Events(events, asking.close)
        await asking.whole()
        body = await asking.thread(lambda: whole().model_dump_json())  # thousands of log-probabilities are a second's work
        response = Response(body, media_type="application/json")
    except BaseException:
        asking.close()
        raise
    asking.close()
    return response


class Events(Response):
    """A response of events; `close` is called when the last is sent, or the caller has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.events, self.close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, and the reason where they end early."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with suppress(HungUp):
                await unless_hung_up(receive, self.sent(send))
        finally:
            self.close()

    async def sent(self, send: Send) -> None:
        """Send them."""
        try:
            async for one in self.events:
                await send({"type": "http.response.body", "body": one.encode(), "more_body": True})
        except Refused as refused:
            await send({"type": "http.response.body", "body": event(refused).encode(), "more_body": True})
        await send({"type": "http.response.body", "body": DONE.encode(), "more_body": False})
