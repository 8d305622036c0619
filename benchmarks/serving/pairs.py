"""The law of serving, pair by pair: what is asked of two methods at once, what the engine is seen to do meanwhile, and who judges it.

Both answers are greedy. The judge is a forward of the adapter alone in float32, live in the model, without slots and without a cache, over
the text and the engine's own tokens. With p(t) the probability that it gives a token after those before it, best the likeliest, and q(t)
what the same forward gives in the engine's dtype:

    gap = log p(best) - log p(token)        noise = max over t of |log p(t) - log q(t)|, what rounding alone does there
    wrong: another token, gap > max(TOLERANCE, 2 noise)                               other: another token within that

An engine whose log-probabilities are within noise of the exact ones never chooses a token whose gap is more than twice that.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graft import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt
from graft.adapter import Adapter
from graft.model.adapted import Adapted
from graft.model.wiring import Wiring
from graft.serve import Engine, Room, Sampling
from serving import models
from serving.models import ON_CARD
from serving.traffic import prompts

ADAPTERS: dict[str, list[Any]] = {
    "lora": [LoRA(r=8)],
    "dora": [DoRA(r=8)],
    "ia3": [IA3()],
    "houlsby": [Bottleneck(size=16)],
    "parallel": [Bottleneck(size=16, act="silu", placement="parallel", scale=4.0)],
    "bias": [BiasOnly(add=True)],
    "prefix": [Prefix(n=12)],
    "prefix_unshifted": [Prefix(n=9, shift=False)],
    "prompt": [Prompt(n=10, init_embeds="random")],
    "lora.bias": [LoRA(r=4), BiasOnly(add=True)],
    "prefix.lora": [Prefix(n=6), LoRA(r=4)],
    "prompt.lora": [Prompt(n=7, init_embeds="random"), LoRA(r=4)],
}
PAIRS = tuple(itertools.combinations((None, *ADAPTERS), 2))
STD = 0.1  # of what is added to every fresh tensor of an adapter, so that each one changes the answers
LOUDER = 10.0  # so many times larger are keys and values of prefixes: like the model's own, else positions would hardly matter to them
SPREAD = 2.0  # of the base's logits: two of them are then hardly ever as close as rounding is wide
TOLERANCE = 0.15
NEW = 12
PAGE, COMMON, OWN = 16, 40, 24  # every text begins with the same COMMON tokens, and has OWN that no other has
ROOM = Room(cached=16_384, batch=16, requests=4, page=PAGE, graphs=ON_CARD, overlap=ON_CARD)  # no text fits into one step


@dataclass
class Step:
    """One batch: (adapter, tokens, up to which position) of each request, and whether a recorded CUDA graph ran it."""

    shares: list[tuple[str | None, int, int]]
    replayed: bool = False


class Steps:
    """Watches an engine that runs: every batch of requests, in order."""

    def __init__(self, engine: Engine) -> None:
        self.seen: list[Step] = []
        self.last: Step | None = None  # None while the engine records for nobody
        self.engine, self.fill = engine, engine.floor.fill
        inputs: Any = engine.batching.manager.batch_processor.inputs_and_outputs  # type: ignore[union-attr]
        self.graph = inputs.get_graph
        engine.floor.fill, inputs.get_graph = self.filled, self.got  # type: ignore[method-assign]

    def filled(self, batch: Sequence[Any], rows: Tensor) -> Any:
        """In the place of `Floor.fill`."""
        found = self.fill(batch, rows)
        known = [(self.engine.floor.running.get(one.name), one) for one in batch]
        shares = [
            (None if ticket.entry is None else ticket.entry.name, one.length, one.position) for ticket, one in known if ticket is not None
        ]
        self.last = Step(shares) if shares else None
        self.seen += [self.last] if self.last is not None else []
        return found

    def got(self) -> Any:
        """In the place of the engine's look for the batch's graph."""
        found = self.graph()
        if self.last is not None:
            self.last.replayed = found is not None
        return found


@dataclass
class Asked:
    """One text asked of one or two adapters at once, and what was seen; `missing` names what should have been seen and was not."""

    names: tuple[str | None, ...]
    ids: list[int]
    answers: list[list[int]] = field(default_factory=list)
    shared: int = 0
    evictions: int = 0
    steps: int = 0
    replayed: int = 0
    tokens: int = 0
    wrong: int = 0
    other: int = 0
    worst: float = 0.0
    noise: float = 0.0
    missing: list[str] = field(default_factory=list)

    @property
    def line(self) -> dict[str, Any]:
        """As it is reported."""
        numbers = {name: getattr(self, name) for name in ("tokens", "wrong", "other", "shared", "evictions", "steps", "replayed")}
        seen = {name: name not in self.missing for name in ("together", "chunked")}
        return {
            "pair": [name or "base" for name in self.names],
            **numbers,
            **seen,
            "worst": round(self.worst, 4),
            "noise": round(self.noise, 4),
            "missing": self.missing,
        }


def made(model: Any) -> dict[str, Adapter]:
    """The adapters, shaken."""
    found = dict(zip(ADAPTERS, models.adapters(model, ADAPTERS.values(), STD), strict=True))
    for adapter in found.values():
        for _, name, value in adapter.walk():
            if name.endswith(":kv"):
                value.mul_(LOUDER)
    return found


def texts(count: int) -> list[list[int]]:
    """So many texts: the common beginning, and an end of each one's own."""
    (common,), ends = prompts(1, COMMON, 512, 1), prompts(count, OWN, 512, 2)
    return [common + end for end in ends]


def ask(engine: Engine, steps: Steps, names: tuple[str | None, ...], ids: list[int], *, first: bool = False) -> Asked:
    """Ask between two batches, so that neither runs ahead; `first`: nobody has asked these adapters, of which nothing is cached."""
    asked, begun, evicted, before = Asked(names, ids), len(steps.seen), engine.slots.evictions, engine.counts().adapters
    sampling = Sampling(max_tokens=NEW)
    handles = engine.floor.run(lambda: [engine.submit(ids, name, sampling) for name in names])
    asked.answers = [handle.result(300).ids for handle in handles]
    own, after = steps.seen[begun:], engine.counts().adapters
    asked.steps, asked.replayed = len(own), sum(step.replayed for step in own)
    asked.evictions = engine.slots.evictions - evicted
    virtual = {name: sum(getattr(method, "n", 0) for method in ADAPTERS.get(name or "", ())) for name in names}
    shared = {name: after[name].tokens["shared"] - (before[name].tokens["shared"] if name in before else 0) for name in names}
    asked.shared = sum(shared.values())
    both = [step for step in own if {name for name, *_ in step.shares} == set(names)]
    parts = {name: [to for step in own for one, length, to in step.shares if one == name and length > 1] for name in names}
    seen = {
        "together": bool(both),
        "chunked": all(any(to < len(ids) + virtual[name] for to in parts[name]) for name in names),
        "shared": all(shared[name] >= (COMMON + virtual[name]) // PAGE * PAGE for name in names),
        "evicted": asked.evictions > 0,
        "replayed": not ON_CARD or any(step.replayed for step in both),
    }
    asked.missing = [] if first else [what for what, there in seen.items() if not there]
    return asked


@torch.no_grad()
def judge(model: Any, exact: Any, name: str | None, adapter: Adapter | None, asked: Sequence[Asked]) -> None:
    """Add to each text what the adapter alone says of the answer under its name; `exact` is the model in float32."""
    rows = [(one, answer) for one in asked for whose, answer in zip(one.names, one.answers, strict=True) if whose == name]
    if not rows:
        return
    whole = torch.tensor([one.ids + answer for one, answer in rows], device=model.device)
    found, rounded = (said_by(each, adapter, whole) for each in (exact, model))
    said, best = whole[:, -NEW:], found.max(-1)
    gaps, noise = best.values - found.gather(-1, said[..., None])[..., 0], (found - rounded).abs().amax(-1)
    differs, within = best.indices != said, gaps <= (2 * noise).clamp_min(TOLERANCE)  # of a gap that is no number: not within
    for (one, _), gap, wrong, other, rounding in zip(rows, gaps, differs & ~within, differs & within, noise, strict=True):
        one.tokens, one.worst, one.noise = one.tokens + NEW, max(one.worst, float(gap.max())), max(one.noise, float(rounding.max()))
        one.wrong, one.other = one.wrong + int(wrong.sum()), one.other + int(other.sum())


def said_by(model: Any, adapter: Adapter | None, whole: Tensor) -> Tensor:
    """The log-probabilities of the last NEW tokens of each row [rows, NEW, V], by the adapter live in a model, as in training: no slot."""
    adapted = None if adapter is None else Adapted(Wiring(model), adapter)
    logits = model(input_ids=whole, use_cache=False).logits[:, -NEW - 1 : -1].float()
    if adapted is not None:
        adapted.detach()
    return logits.log_softmax(-1)


def unlike(asked: Sequence[Asked]) -> set[str]:
    """The adapters that answer some text otherwise than the base does; of others nothing could be said."""
    base = {tuple(one.ids): answer for one in asked for name, answer in zip(one.names, one.answers, strict=True) if name is None}
    named = [(name, one.ids, answer) for one in asked for name, answer in zip(one.names, one.answers, strict=True) if name is not None]
    return {name for name, ids, answer in named if answer != base.get(tuple(ids), answer)}
