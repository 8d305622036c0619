"""How the next token is chosen, for each request as it asked, in one pass over the batch's logits.

    z = logits / temperature, kept where they are among the k largest and in the smallest set whose probabilities reach top_p
    token = argmax(z + g)      g = -log(-log u), u a hash of the request's seed, the position and the token's id

The maximum of z + g is a draw from softmax(z) (Gumbel), so that a greedy request is the same with g = 0, and a draw depends on the
request's own seed and position alone: not on the rows beside it, on chunks, or on how batches overlap; there is no generator whose state a
recorded CUDA graph would have to carry. Log-probabilities are those of the model, before temperature and cuts.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from graft.errors import ServeError

MOST_TOLD = 20  # alternatives of a token
ROWS, OUTPUTS = 6, 1 + 2 * MOST_TOLD
WORD = 0xFFFFFFFF
COLD = 1e-6  # a temperature below draws what is likeliest, and logits over it would be no numbers


@dataclass(frozen=True)
class Sampling:
    """What a request asks for. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing; without a `seed` one is drawn.

    `n` answers, each from a seed of its own; `stop`: texts at which an answer ends, without them; `logprobs`: None, or how many
    alternatives of each token are told beside its own log-probability; `ignore_end`: go on after the model's end of sequence.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_end: bool = False

    def __post_init__(self) -> None:
        """Raise ServeError where a value means nothing."""
        bounds = {
            "max_tokens": (1, 2**31 - 1), "temperature": (0, 100), "top_p": (1e-6, 1), "top_k": (0, 2**31 - 1), "n": (1, 128),
            "logprobs": (0, MOST_TOLD), "seed": (0, 2**63 - 1),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ServeError(f"{name} = {value} cannot be sampled with: it lies between {low} and {high}")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ServeError("stop holds texts at which an answer ends, and none of them is empty")

    def seeds(self) -> list[int]:
        """A seed for each of the n answers."""
        first = secrets.randbits(62) if self.seed is None else self.seed
        return [(first + number) % 2**63 for number in range(self.n)]


class Draws(NamedTuple):
    """What a batch's requests ask for together: any draw at all, any cut, and how many alternatives (-1: no log-probability)."""

    any: bool = False
    cut: bool = False
    told: int = -1


def fill(asked: Sequence[tuple[Sampling, int, int]], rows: Tensor) -> Draws:
    """Write rows [ROWS, width] int32 for (sampling, seed, position) of each request; what they ask for together."""
    drawn = any(one.temperature >= COLD for one, _, _ in asked)
    cut = drawn and any(one.top_k > 0 or one.top_p < 1 for one, _, _ in asked)
    told = max((-1 if one.logprobs is None else one.logprobs for one, _, _ in asked), default=-1)
    if drawn:
        heat = [one.temperature if one.temperature >= COLD else 0.0 for one, _, _ in asked]
        floats = torch.tensor([heat, [one.top_p for one, _, _ in asked]], dtype=torch.float32)
        rows[:2, : len(asked)] = floats.view(torch.int32)
        halves = [[one.top_k, signed(seed), signed(seed >> 32), position] for one, seed, position in asked]
        rows[2:, : len(asked)] = torch.tensor(halves, dtype=torch.int32).t()
    return Draws(drawn, cut, told if told < 1 else MOST_TOLD)


def signed(word: int) -> int:
    """The low 32 bits as an int32 has them."""
    word &= WORD
    return word - (1 << 32) if word >> 31 else word


def choose(logits: Tensor, rows: Tensor, draws: Draws) -> Tensor:
    """The next tokens from float logits [n, vocabulary] and rows [ROWS, n]: int32 [1, n], or with log-probabilities [1 + OUTPUTS, n]."""
    if not draws.any:
        tokens = logits.argmax(-1)
    else:
        temperature, top_p = rows[:2].contiguous().view(torch.float32)
        scores = logits / torch.where(temperature > 0, temperature, 1)[:, None]
        scores = kept(scores, rows[2], top_p) if draws.cut else scores
        noise = gumbel(rows[3], rows[4], rows[5], logits.shape[-1])
        tokens = (scores + noise * (temperature > 0)[:, None]).argmax(-1)
    chosen = tokens.int()[None]
    return chosen if draws.told < 0 else torch.cat([chosen, told(logits, tokens, draws.told)])


def kept(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Scores [n, vocabulary], -inf beyond the k largest (0: all), and then beyond the smallest set that holds top_p."""
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    ordered = ordered.masked_fill((top_k[:, None] > 0) & (rank >= top_k[:, None]), -torch.inf)
    weights = ordered.softmax(-1)
    before = weights.cumsum(-1) - weights
    ordered = ordered.masked_fill((before >= top_p[:, None]) & (top_p[:, None] < 1) & (rank > 0), -torch.inf)
    return torch.empty_like(scores).scatter_(-1, index, ordered)


def gumbel(low: Tensor, high: Tensor, position: Tensor, vocabulary: int) -> Tensor:
    """Noise [n, vocabulary] float32 that depends on a row's seed [n] (two words) and position [n], and on the token's id."""
    ids = torch.arange(vocabulary, device=low.device)
    row = mixed(mixed(mixed(low.long() & WORD) ^ (high.long() & WORD)) ^ (position.long() & WORD))
    word = mixed(mixed(row[:, None] ^ (ids * 0x9E3779B1 & WORD)))
    u = ((word >> 9).float() + 0.5) * 2.0**-23  # never 0 or 1
    return -(-u.log()).log()


def mixed(word: Tensor) -> Tensor:
    """A 32-bit word (in int64) whose every bit depends on every bit of the given one (Wellons' lowbias32)."""
    word = (word ^ (word >> 16)) * 0x7FEB352D & WORD
    word = (word ^ (word >> 15)) * 0x846CA68B & WORD
    return word ^ (word >> 16)


def told(logits: Tensor, tokens: Tensor, most: int) -> Tensor:
    """Of tokens [n]: their log-probability, ids of the `MOST_TOLD` likeliest and theirs, [OUTPUTS, n] int32 (floats as their bits)."""
    logs = logits.float().log_softmax(-1)
    out = torch.zeros(OUTPUTS, len(tokens), dtype=torch.int32, device=logits.device)
    out[0] = logs.gather(-1, tokens[:, None])[:, 0].contiguous().view(torch.int32)
    if most:
        count = min(MOST_TOLD, logits.shape[-1])
        values, ids = logs.topk(count, -1)
        out[1 : 1 + count] = ids.int().t()
        out[1 + MOST_TOLD : 1 + MOST_TOLD + count] = values.contiguous().view(torch.int32).t()
    return out


def read(row: Tensor, count: int) -> tuple[float, list[tuple[int, float]]]:
    """A token's log-probability and its `count` likeliest alternatives, from its outputs [OUTPUTS] int32."""
    logs = row.view(torch.float32)
    ids, values = row[1 : 1 + count].tolist(), logs[1 + MOST_TOLD : 1 + MOST_TOLD + count].tolist()
    return float(logs[0]), list(zip(ids, values, strict=True))
