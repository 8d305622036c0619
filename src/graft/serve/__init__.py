"""Serving: adapters of different methods and the bare base together, on transformers' continuous batching."""

from graft.serve.answers import Answer, Handle, Result, Token, Usage
from graft.serve.engine import Engine, Served
from graft.serve.guest import Room
from graft.serve.sampling import Sampling

__all__ = ["Answer", "Engine", "Handle", "Result", "Room", "Sampling", "Served", "Token", "Usage"]
