"""Refusals: every answer that is no answer, in the shape that OpenAI's clients know.

{"error": {"message": one sentence, "type": ..., "param": ..., "code": ...}}
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from graft.errors import Expired, Failed, Overloaded, ServeError, Stopped, UnknownAdapter

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
ENGINE = {
    UnknownAdapter: (404, "model_not_found"),
    Overloaded: (429, "too_many_requests"),
    Stopped: (503, "stopping"),
    Expired: (408, "timeout"),
    Failed: (500, "failed"),
}
MEANINGS = {
    400: "The request cannot be answered as it is.",
    401: "No key, or a wrong one.",
    403: "Not with this key, or not from this page or by this host name.",
    404: "No such model.",
    405: "The path has no such method.",
    408: "The body did not arrive, or the answer was not whole, in time.",
    409: "The name is taken by something else.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "Too many requests are under way.",
    500: "Something failed here; the server goes on.",
    503: "The server is stopping, or its engine has ended.",
}


class Problem(BaseModel):
    """What is wrong: `param` the field, `code` a word for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """The body of every refusal."""

    error: Problem


class Refused(Exception):
    """A request that is not answered: `status`, one sentence, and what of the request it is about."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def problem(self) -> Problem:
        """It as it is told."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return Problem(message=writable(self.message), type=kind, param=self.param, code=self.code)

    def reply(self, headers: Mapping[str, str] | None = None) -> Response:
        """The whole response."""
        more = {"retry-after": "1"} if self.status in (429, 503) else {}
        return Response(
            ErrorReply(error=self.problem).model_dump_json(), self.status, {**more, **(headers or {})}, media_type="application/json"
        )


def writable(text: str) -> str:
    """A text that has a UTF-8 form: what a request brought may have none."""
    return text.encode("utf-8", "replace").decode()[:2000]


def from_engine(error: ServeError, hidden: str = "") -> Refused:
    """The engine's own refusal; `hidden` is a folder whose path is nothing for callers."""
    status, code = next((found for kind, found in ENGINE.items() if isinstance(error, kind)), (400, "cannot_be_served"))
    said = str(error).replace(f"{hidden}/", "").replace(hidden, "its folder") if hidden else str(error)
    return Refused(status, said, code=code, param="model" if status == 404 else None)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> Refused:
    """Of a body that does not have the shape which the document says: the first thing that is wrong."""
    first = errors[0] if errors else {}
    if first.get("type") == "json_invalid":
        return Refused(400, "the body is not JSON", code="json_invalid")
    place = [str(part) for part in first.get("loc", ()) if part not in ("body", "path", "query")]
    param = place[0] if place else None
    where = writable(".".join(place))[:200]
    said = str(first.get("msg", "it cannot be read"))
    if first.get("type") == "extra_forbidden":
        said = "there is no such field"
    return Refused(400, f"{where}: {said}" if where else said, code="invalid_value", param=None if param is None else writable(param)[:100])


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the document says of these statuses."""
    return {status: {"model": ErrorReply, "description": MEANINGS[status]} for status in statuses}


def event(refused: Refused) -> str:
    """A refusal in the middle of a stream."""
    return f"data: {json.dumps({'error': refused.problem.model_dump()})}\n\n"
