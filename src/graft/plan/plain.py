"""A plan as plain data for other tools: what `graft plan --json` prints."""

from dataclasses import asdict
from typing import Any

from graft.method import config
from graft.plan.advice import Rule, why_not
from graft.plan.plan import Entry, Plan


def plain(plan: Plan, asked: str = "") -> dict[str, Any]:
    """JSON values: bytes, seconds and counts as numbers; `asked` is a method of which to say why it was not advised."""
    found = {
        "model": {"name": plan.model, "type": plan.kind, "parameters": plan.parameters},
        "rows": {
            "count": plan.rows.count,
            "mean_tokens": plan.rows.mean,
            "longest_tokens": plan.rows.longest,
            "source": plan.rows.source,
        },
        "memory_bytes": plan.memory,
        "device": "cpu" if plan.cpu else "gpu",
        "dtype": str(plan.dtype).removeprefix("torch."),
        "card": None if plan.card is None else asdict(plan.card),
        "methods": [entry(each) for each in plan.entries],
        "advice": {
            "best": list(plan.advice.best),
            "reasons": [rule(one) for one in plan.advice.reasons],
            "caveats": [rule(one) for one in plan.advice.caveats],
            "points": plan.advice.points,
            "ruled_out": {name: rule(one) for name, one in plan.advice.ruled_out.items()},
        },
    }
    return found | ({"why_not": {asked: [rule(one) for one in why_not(plan.situation, asked)]}} if asked else {})


def entry(each: Entry) -> dict[str, Any]:
    """One method."""
    one, choice = each.counted, each.choice
    found: dict[str, Any] = {
        "name": one.name,
        "trained": one.trained,
        "stored": one.stored,
        "share": one.share,
        "refused": one.refused,
        "served": None if one.served is None else asdict(one.served),
        "smallest_memory_bytes": each.least or None,
        "smallest_card": None if each.card is None else each.card.name,
        "training": None,
    }
    if choice:
        found["training"] = {
            "method": config(choice.method),
            "setup": asdict(choice.setup),
            "given_up": list(choice.given_up),
            "peak_bytes": choice.memory.peak,
            "peak_at": choice.memory.moment,
            "parts": choice.memory.parts,
            "seconds_per_update": choice.seconds,
            "tokens_per_second": each.tokens_per_second,
            "hours": each.hours,
            "command": each.command,
        }
    return found


def rule(one: Rule) -> dict[str, str]:
    """A rule's sentence and its source."""
    return {"sentence": one.sentence, "source": one.source}
