"""GET /health: the process answers. GET /ready: the engine runs, and new requests are taken. Neither asks for a key."""

from fastapi import APIRouter

from graft.serve.http.desk import Desk
from graft.serve.http.refusals import Refused, documented
from graft.serve.http.replies import Health


def routes(desk: Desk) -> APIRouter:
    """The endpoints."""
    router = APIRouter(tags=["health"])

    @router.get("/health", responses=documented(403))
    async def health() -> Health:
        """Say that the process answers."""
        return Health(status="ok")

    @router.get("/ready", responses=documented(403, 503))
    async def ready() -> Health:
        """Say whether requests are answered."""
        dead = desk.engine.floor.dead or ("" if desk.engine.batching is not None else "it was not started")
        if dead or desk.gate.closed:
            raise Refused(503, f"requests are not answered: {dead or 'the server is stopping'}", code="not_ready")
        return Health(status="ready")

    return router
