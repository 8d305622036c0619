"""Load and unload adapters of the root folder, with the admin key.

PUT /admin/adapters/{name}                  read root/NAME, or read it again; requests that run keep what they began with
DELETE /admin/adapters/{name}?cancel=true   forget it; its requests run to their end, or (cancel) end now
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from graft.errors import ServeError
from graft.serve.http.desk import Desk
from graft.serve.http.refusals import Refused, documented, from_engine
from graft.serve.http.replies import Deleted, Model
from graft.serve.shelf import NAME

Name = Annotated[str, Path(pattern=f"^{NAME.pattern}$", description="The adapter's name, which is its folder's.")]


def routes(desk: Desk) -> APIRouter:
    """The endpoints."""
    router = APIRouter(tags=["admin"])
    refused = documented(400, 401, 403, 404, 500, 503)

    @router.put("/admin/adapters/{name}", responses=refused)
    async def load_adapter(name: Name) -> Model:
        """Read an adapter from its folder, in place of what has its name."""
        return await done(lambda: desk.load(name))  # type: ignore[no-any-return]

    @router.delete("/admin/adapters/{name}", responses=refused)
    async def unload_adapter(
        name: Name, cancel: Annotated[bool, Query(description="End its requests now, instead of waiting for them.")] = False
    ) -> Deleted:
        """Forget an adapter."""
        if not desk.engine.library.knows(name):
            raise Refused(404, f"no adapter {name!r} is served here: there are {desk.engine.library.known()}", code="model_not_found")
        await done(lambda: desk.unload(name, cancel=cancel))
        return Deleted(id=name)

    return router


async def done(work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a thread. Raises Refused where the adapter is none that can be served."""
    try:
        return await asyncio.to_thread(work)
    except ServeError as error:
        raise from_engine(error) from error
