"""Doors that every request passes before an endpoint sees it, outermost first.

    Names     a Host header that is ours, and no page of another site behind the request
    Keys      the API key, the admin key for /admin/: everything that is not named as open is closed
    Bodies    JSON, no larger than the limit, arrived in time

A page that a user looks at can send requests to 127.0.0.1. One of another site says so in its Origin header; one whose name was made to
lead here (DNS rebinding) brings that name as Host: both are refused, and no response lets another origin read it.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft.serve.http.refusals import Refused
from graft.serve.http.settings import Limits, Settings

ADMIN = "/admin/"
METRICS = "/metrics"
DRAINED = 64 << 20  # bytes of a body that is refused which are read all the same


class Names:
    """Refuses hosts and origins that are not ours."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.known, self.own = app, settings.known_hosts, frozenset(name.lower() for name in settings.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http":
            self.check(Headers(scope=scope))
        await self.app(scope, receive, send)

    def check(self, headers: Headers) -> None:
        """Raise Refused where the request is not meant for us, or comes from another site's page."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.known is not None and hostname(host) not in self.known:
            said = f"this server is not called {hostname(host)[:100]!r}: start it with --allow-host if it is"
            raise Refused(403, said, code="host_not_allowed")
        if origin is not None and not self.ours(origin, host):
            raise Refused(403, f"pages of {origin[:100]!r} may not use this server", code="origin_not_allowed")

    def ours(self, origin: str, host: str) -> bool:
        """Whether a page is one of ours."""
        where = urlsplit(origin).netloc.lower() if origin.isprintable() else ""
        return bool(where) and (where == host.lower() or hostname(where) in self.own)


def hostname(host: str) -> str:
    """A Host header's name, without port and brackets."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0].rstrip(".") if name.count(":") == 1 else name.rstrip(".")


class Keys:
    """Asks for keys, except at open paths."""

    def __init__(self, app: ASGIApp, settings: Settings, open_paths: Collection[str]) -> None:
        self.app, self.open = app, frozenset(open_paths)
        self.api, self.admin = digest(settings.api_key), digest(settings.admin_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in self.open:
            self.check(scope["path"], given(Headers(scope=scope)))
        await self.app(scope, receive, send)

    def check(self, path: str, key: bytes) -> None:
        """Raise Refused unless the key opens the path."""
        if path.startswith(ADMIN):
            if not self.admin:
                said = "adapters are loaded and unloaded with an admin key, and the server was started without one (--admin-key-file)"
                raise Refused(403, said, code="no_admin_key")
            allowed = [self.admin]
        else:
            allowed = [self.api, self.admin] if path == METRICS and self.admin else [self.api]
        if all(allowed) and not any([hmac.compare_digest(key, one) for one in allowed]):  # all are compared, in constant time
            what = "the admin key" if path.startswith(ADMIN) else "an API key"
            raise Refused(401, f"{what} is needed, as 'Authorization: Bearer KEY', and there is none or another", code="invalid_api_key")


def digest(key: str) -> bytes:
    """What keys are compared by: all of one length, whatever is sent. Of no key nothing."""
    return hashlib.sha256(key.encode()).digest() if key else b""


def given(headers: Headers) -> bytes:
    """The digest of the key that a request brings."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return hashlib.sha256(key.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b"").digest()


class Bodies:
    """Reads a body before the endpoint does, within the limits."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through with its whole body, or refuse it."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        announced = int(length[:20]) if length.isdecimal() else 0
        if announced > DRAINED or (announced > self.limits.body_bytes and "expect" in headers):
            raise self.large()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self.read(receive)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds", code="timeout") from error
        if body is None:
            return
        if body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be JSON, and its Content-Type application/json", code="unsupported_media_type")
        await self.app(scope, replayed(body, receive), send)

    async def read(self, receive: Receive) -> bytes | None:
        """The whole body; None where the caller has gone before it came.

        One that is too large is let run dry before it is refused, up to a point: who still sends would not read why.
        """
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > DRAINED:
                raise self.large()
            if size <= self.limits.body_bytes:
                parts.append(message.get("body", b""))
        if size > self.limits.body_bytes:
            raise self.large()
        return b"".join(parts)

    def large(self) -> Refused:
        """Why a body is refused."""
        return Refused(413, f"the body has more than {self.limits.body_bytes} bytes, the most that is read", code="body_too_large")


def replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` for an endpoint: the body in one piece, then what comes after it."""
    waiting = [body]

    async def again() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return again
