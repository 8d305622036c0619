"""What the planner says of a point before it is measured."""

import functools
from typing import Any

import transformers

import graft
from graft.method import Method
from graft.methods import METHODS
from graft.model import families
from graft.model.skeleton import skeleton
from graft.plan.job import Job, bare, job
from graft.plan.setup import Setup
from steps.points import LIMIT, Point
from steps.rows import SHAPES


def job_of(point: Point, recorded: bool = False) -> Job:
    """The planner's job of a point: a row of Graft, or the limit. A step of the benchmark has no optimizer in it; `recorded` says that it
    is replayed as one CUDA graph.
    """
    setup = Setup(
        batch=point.batch,
        tokens=point.tokens,
        checkpointing=point.checkpointing,
        nf4=point.base == "nf4",
        optimizer="",
        loss="model" if point.loss == "hf" else "chunked",
        supervised=point.supervised,
        recorded=recorded,
    )
    model, sites = shape(point.shape)
    return bare(model, sites, setup) if point.method == LIMIT else job(model, sites, method(point), setup)


def method(point: Point) -> Method:
    """What a row trains."""
    made = {"lora": graft.LoRA(r=point.rank or 1, dropout=point.dropout), "dora": graft.DoRA(r=point.rank or 1, dropout=point.dropout)}
    return made.get(point.method) or METHODS[point.method]


@functools.cache
def shape(name: str) -> tuple[Any, Any]:
    """A shape's model without memory, and its sites."""
    model = skeleton(transformers.LlamaConfig(**SHAPES[name], max_position_embeddings=8192))
    return model, families.sites(model)


def ours(point: Point) -> bool:
    """Whether a point is a step that the planner knows: of Graft as training sets it up, or the limit, on a card."""
    return not point.threads and (point.row == LIMIT or point.row in METHODS) and point.row != "full"
