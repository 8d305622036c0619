"""GET /v1/models and /v1/models/{id}: the base, and each adapter with its methods, parent and size."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path

from graft.serve.http.desk import Desk
from graft.serve.http.refusals import documented
from graft.serve.http.replies import Model, Models

REFUSED = documented(400, 401, 403, 500)


def routes(desk: Desk) -> APIRouter:
    """The endpoints."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", responses=REFUSED)
    async def list_models() -> Models:
        """List the base and all adapters."""
        return await asyncio.to_thread(lambda: Models(data=[desk.base(), *map(desk.listed, desk.engine.adapters())]))

    @router.get("/v1/models/{model:path}", responses={**REFUSED, **documented(404)})
    async def retrieve_model(model: Annotated[str, Path(min_length=1, max_length=256)]) -> Model:
        """Tell of one model."""
        adapter = desk.adapter(model)
        return desk.base() if adapter is None else await asyncio.to_thread(lambda: desk.listed(desk.engine.library.served(adapter)))

    return router
