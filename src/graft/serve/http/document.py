"""The OpenAPI document: made from the endpoints, and completed with what only this server knows: its vocabulary, and its keys."""

from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from graft.serve.http.desk import Desk
from graft.serve.http.doors import ADMIN, METRICS
from graft.serve.http.replies import ChatChunk

ABOUT = (
    "One base model, many adapters of different methods, one batch. A request's `model` is an adapter's name or the base's. "
    "Every refusal has the shape of ErrorReply."
)


def documented(app: FastAPI, desk: Desk) -> dict[str, Any]:
    """The whole document."""
    found = get_openapi(title="Graft", version=metadata.version("graft-peft"), description=ABOUT, routes=app.routes)
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= chunk_schemas()
    found["components"]["securitySchemes"] = {
        "api_key": {"type": "http", "scheme": "bearer", "description": "The key that the server was started with."},
        "admin_key": {"type": "http", "scheme": "bearer", "description": "The key that loads and unloads adapters."},
    }
    for path, methods in found["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            keys = keys_of(path, desk)
            if keys:
                operation["security"] = [{key: []} for key in keys]
            else:
                operation["responses"].pop("401", None)
    for name in ("ChatRequest", "CompletionRequest"):
        schemas[name]["properties"]["model"]["examples"] = [desk.settings.name]
    bound(schemas["CompletionRequest"]["properties"]["prompt"], desk.engine.limits.vocabulary)
    return found


def keys_of(path: str, desk: Desk) -> list[str]:
    """The keys any one of which opens a path; none where it is open."""
    if path in ("/health", "/ready"):
        return []
    if path.startswith(ADMIN):
        return ["admin_key"]
    own = ["api_key"] if desk.settings.api_key else []
    return [*own, "admin_key"] if own and path == METRICS and desk.settings.admin_key else own


def chunk_schemas() -> dict[str, Any]:
    """The schemas of a streamed chat's events, which no response names."""
    made = ChatChunk.model_json_schema(ref_template="#/components/schemas/{model}")
    inner: dict[str, Any] = made.pop("$defs")
    return {**inner, "ChatChunk": made}


def bound(schema: Any, vocabulary: int) -> None:
    """Let every integer in a schema be below the vocabulary's size."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            schema["maximum"] = vocabulary - 1
        for value in schema.values():
            bound(value, vocabulary)
    elif isinstance(schema, list):
        for value in schema:
            bound(value, vocabulary)
