"""Wishes: what a request asks of sampling, in the engine's words, with OpenAI's defaults."""

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
