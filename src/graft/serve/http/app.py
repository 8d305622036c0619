"""The application: endpoints behind the doors, in a frame.

app = create_app(engine, Settings(name="smollm2"), root)        the engine runs already, and is closed by whoever started it
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from graft.errors import ServeError
from graft.serve.engine import Engine
from graft.serve.http import admin, chat, completions, health, metrics, models, page
from graft.serve.http.desk import Desk
from graft.serve.http.document import documented
from graft.serve.http.doors import Bodies, Keys, Names
from graft.serve.http.frame import Frame
from graft.serve.http.metrics import Meter
from graft.serve.http.refusals import Refused, from_engine, from_validation
from graft.serve.http.settings import Settings
from graft.serve.root import Root

OPEN = ("/health", "/ready")
CODES = {404: "there is no such path", 405: "the path has no such method", 400: "the body cannot be read as JSON"}


def create_app(engine: Engine, settings: Settings, root: Root | None = None) -> FastAPI:
    """The application of a running engine with a tokenizer. Raises ServeError where an adapter has the base's name."""
    return built(Desk(engine, settings, root))


def built(desk: Desk) -> FastAPI:
    """The application at a desk."""
    meter = Meter(desk)
    app = FastAPI(title="Graft", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    parts = [chat.routes(desk), completions.routes(desk), models.routes(desk), health.routes(desk), metrics.routes(meter)]
    for router in [*parts, admin.routes(desk)] if desk.settings.admin_key else parts:
        app.include_router(router)
    app.routes.extend(page.routes())
    for kind, handler in ((Refused, refused), (ServeError, cannot), (RequestValidationError, invalid), (HTTPException, unknown)):
        app.add_exception_handler(kind, handler)
    document: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not document:
            document.append(documented(app, desk))
        return document[0]

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi_document() -> dict[str, Any]:
        return app.openapi()

    app.add_middleware(Bodies, limits=desk.settings.limits)  # the last one added is the outermost
    app.add_middleware(Keys, settings=desk.settings, open_paths=(*OPEN, *page.PATHS))
    app.add_middleware(Names, settings=desk.settings)
    app.add_middleware(Frame, meter=meter)
    return app


async def refused(request: Request, error: Exception) -> Response:
    """A refusal."""
    assert isinstance(error, Refused)
    return error.reply()


async def cannot(request: Request, error: Exception) -> Response:
    """A refusal of the engine's that no endpoint has turned into one of ours."""
    assert isinstance(error, ServeError)
    return from_engine(error).reply()


async def invalid(request: Request, error: Exception) -> Response:
    """A body or a path that does not have the shape which the document says."""
    assert isinstance(error, RequestValidationError)
    return from_validation(error.errors()).reply()


async def unknown(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    said = CODES.get(error.status_code, str(error.detail))
    headers = {"allow": ", ".join(allowed(request))} if error.status_code == 405 else {}
    return Refused(error.status_code, f"{said}: {request.method} {request.url.path[:200]}").reply(headers)


def allowed(request: Request) -> list[str]:
    """All methods of a path; Starlette names those of the first route alone."""
    found = [route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE]
    return sorted({method for route in found for method in getattr(route, "methods", None) or ()})
