"""Serving: adapters of different methods and the bare base together, on transformers' continuous batching."""

from graft.serve.answers import Answer, Handle, Result, Token, Usage
from graft.serve.counts import Counted, Counts, Histogram
from graft.serve.engine import Engine
from graft.serve.fair import Queueing
from graft.serve.guest import Room
from graft.serve.sampling import Sampling
from graft.serve.scoring import Scored
from graft.serve.shelf import Served

__all__ = [
    "Answer",
    "Counted",
    "Counts",
    "Engine",
    "Handle",
    "Histogram",
    "Queueing",
    "Result",
    "Room",
    "Sampling",
    "Scored",
    "Served",
    "Token",
    "Usage",
]
