"""Wishes: what a request asks of sampling, in the engine's words.

What it does not state the adapter's own generation settings state, else the base's, else OpenAI's defaults.
"""

from collections.abc import Mapping
from dataclasses import replace

from graft.serve.http.schemas import ChatRequest, CompletionRequest
from graft.serve.sampling import Sampling

SEEDS = 2**63  # how many there are
LEAST_TOP_P = 1e-6  # what 0 means: the likeliest token alone


def sampling_of(body: ChatRequest | CompletionRequest, new: int | None, told: int | None, default: int) -> Sampling:
    """The sampling: `new` tokens at most (`default` where nothing is said), `told` alternatives of each or None."""
    return Sampling(
        max_tokens=max(1, default if new is None else new),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, LEAST_TOP_P),
        top_k=body.top_k or 0,
        seed=None if body.seed is None else body.seed % SEEDS,
        n=body.n or 1,
        stop=body.stops,
        logprobs=told,
        ignore_end=bool(body.ignore_eos),
    )


def voiced(sampling: Sampling, body: ChatRequest | CompletionRequest, stated: Mapping[str, float]) -> Sampling:
    """The sampling with what the adapter's or the base's settings state where the request states nothing."""
    kinds = {"temperature": float, "top_p": float, "top_k": int}
    return replace(sampling, **{name: kinds[name](value) for name, value in stated.items() if getattr(body, name) is None})
