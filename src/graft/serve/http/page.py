"""The playground at `/`, as graft.serve.playground has it, with its own strict headers. It holds no data, so no key is asked for."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from graft.serve.playground import HEADERS, PAGES

PATHS = tuple(PAGES)


def routes() -> list[BaseRoute]:
    """A route for each file of the page."""
    return [Route(path, served, include_in_schema=False) for path in PATHS]


def served(request: Request) -> Response:
    """One file of the page."""
    kind, body = PAGES[request.url.path]
    return Response(body, headers=HEADERS, media_type=kind)
