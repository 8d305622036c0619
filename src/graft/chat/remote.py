"""A server as what answers: OpenAI's API over HTTP, streams as server-sent events (`data: JSON`, a blank line, at last `data: [DONE]`)."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from graft.chat.backend import Model, Piece, Prompt
from graft.errors import ServeError

CONNECT = 10.0  # seconds until a server must have taken the connection; an answer may take as long as it takes
BROKEN = (OSError, HTTPException, ValueError)


class Remote:
    """A server at a URL such as http://127.0.0.1:8000, with an API key or none."""

    def __init__(self, url: str, key: str = "") -> None:
        """Raises ServeError where the URL is none."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number
            known = False
        if not known:
            raise ServeError(f"{url!r} is no server's URL: it looks like http://127.0.0.1:8000")
        self.parts, self.key, self.where = parts, key, f"{parts.scheme}://{parts.netloc}"

    def connect(self) -> HTTPConnection:
        """A new connection. Raises ServeError where no server takes it."""
        kind = HTTPSConnection if self.parts.scheme == "https" else HTTPConnection
        connection = kind(self.parts.hostname or "", self.parts.port, timeout=CONNECT)
        try:
            connection.connect()
        except OSError as error:
            raise ServeError(f"no server answers at {self.where} ({error}): start one with `graft serve`, or name another --url") from error
        connection.sock.settimeout(None)
        return connection

    def send(self, connection: HTTPConnection, method: str, path: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        """Send a request and wait for the head of its response. Raises ServeError with the server's own sentence where it refuses."""
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        connection.request(method, self.parts.path.rstrip("/") + path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise ServeError(refusal(response.read(), response))
        return response

    def models(self) -> list[Model]:
        """What the server has, the base first. Raises ServeError where it cannot say."""
        connection = self.connect()
        try:
            data = json.loads(self.send(connection, "GET", "/v1/models").read())["data"]
        except (*BROKEN, KeyError, TypeError) as error:
            raise ServeError(f"what answers at {self.where} is no server of this kind: {error}") from error
        finally:
            connection.close()
        return sorted((model_of(one) for one in data), key=lambda one: (not one.is_base, one.name))

    def ask(self, model: str, prompt: Prompt, sampling: dict[str, Any]) -> "RemoteStream":
        """An answer; nothing is sent before it is iterated over."""
        path, key = ("/v1/completions", "prompt") if isinstance(prompt, str) else ("/v1/chat/completions", "messages")
        options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        return RemoteStream(self, path, {"model": model, key: prompt} | sampling | options)


class RemoteStream:
    """An answer of a server. Cancelling closes the connection, which the server takes as the end of the request."""

    def __init__(self, server: Remote, path: str, body: dict[str, Any]) -> None:
        self.server, self.path, self.body = server, path, body
        self.reason, self.cancelled = "", False
        self.socket: socket.socket | None = None

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come. Raises ServeError where the server refuses, or the stream breaks."""
        connection = self.server.connect()
        self.socket = connection.sock
        try:
            if not self.cancelled:
                yield from self.pieces(self.server.send(connection, "POST", self.path, self.body))
        except BROKEN as error:
            if not self.cancelled:
                raise ServeError(f"the connection to {self.server.where} broke: {error}") from error
        finally:
            connection.close()
            if self.cancelled:
                self.reason = "cancelled"

    def pieces(self, response: HTTPResponse) -> Iterator[Piece]:
        """The pieces of a stream's events."""
        tokens = 0
        for event in events(response):
            if "error" in event:
                raise ServeError(str(event["error"].get("message", event["error"])))
            choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
            text = str((choice.get("delta") or {}).get("content") or choice.get("text") or "")
            told = (event.get("usage") or {}).get("completion_tokens")
            tokens = tokens + bool(text) if told is None else int(told)
            self.reason = choice.get("finish_reason") or self.reason
            yield Piece(text, tokens)
        if not self.reason and not self.cancelled:
            raise ServeError(f"{self.server.where} ended the stream before the answer was complete")

    def cancel(self) -> None:
        """Close the connection under whoever reads it."""
        if not self.reason:
            self.cancelled = True
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


def events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of a stream's events."""
    for line in response:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)


def refusal(body: bytes, response: HTTPResponse) -> str:
    """The sentence in a refusal's body, or its status."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["message"])
    return f"the server answered {response.status} {response.reason}"


def model_of(entry: dict[str, Any]) -> Model:
    """A model as GET /v1/models lists it."""
    return Model(
        str(entry["id"]),
        not entry.get("parent"),
        str(entry.get("methods") or ""),
        int(entry.get("virtual_tokens") or 0),
        int(entry.get("bytes") or 0),
        entry.get("chat") is not False,
    )
