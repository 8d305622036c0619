"""The law of serving on the machine at hand: greedy answers of any two methods in one step are those of each adapter alone.

    python benchmarks/serve_pairs.py --output pairs.jsonl [--pairs N]

On a card in bfloat16, with CUDA graphs, overlapping batches and the kernels of slots and paged attention; elsewhere in float32, without.
Two slots and a step of 16 tokens: each pair of the bare base and twelve adapters (serving/pairs.py) needs another to leave its slot, its
text takes several steps, and the text's beginning comes from the cache. All of that must be seen, pair by pair, and on a card that steps
with both were replayed from recorded graphs. The model is random, its adapters shaken. Exits with 1 where a token is wrong, or something
was not seen; one line of JSON is appended to the output either way.
"""

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from graft.adapter import Adapter
from graft.compare.machine import machine, versions
from graft.kernels import slots
from graft.serve import Engine
from serving import models
from serving.pairs import ADAPTERS, PAIRS, ROOM, SPREAD, TOLERANCE, Asked, Steps, ask, judge, made, texts, unlike

SLOTS = 2
SUMS = ("tokens", "wrong", "other", "shared", "evictions", "steps", "replayed", "together", "chunked")


def parsed(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a JSON-lines file to append to")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="so many of the pairs only")
    return parser.parse_args(given)


@torch.no_grad()
def spread(model: Any) -> Any:
    """The model, with its head scaled so that logits after a text have the standard deviation SPREAD."""
    logits = model(input_ids=torch.tensor(texts(4), device=model.device)).logits
    model.lm_head.weight.mul_(SPREAD / float(logits.float().std()))
    return model


@torch.no_grad()
def served(
    model: Any, adapters: Mapping[str, Adapter], pairs: Sequence[tuple[str | None, ...]]
) -> tuple[list[Asked], list[Asked], dict[str, Any]]:
    """Every adapter asked by itself, so that all slots are taken and common pages cached; every pair; and what the engine ran on."""
    first, *own = texts(1 + len(pairs))
    with patch.object(slots, "joined", wraps=slots.joined) as joined, Engine(model, slots=SLOTS, room=ROOM) as engine:
        for name, adapter in adapters.items():
            engine.load(name, adapter)
        steps = Steps(engine)
        alone = [ask(engine, steps, (name,), first, first=True) for name in (None, *ADAPTERS)]
        asked = [ask(engine, steps, pair, ids) for pair, ids in zip(pairs, own, strict=True)]
        batching: Any = engine.batching
        bands = sum(band.stack is not None for band in engine.residents.bands)
        ran = {"paged": batching.paged, "bands": bands, "joined": joined.call_count, "graphs": ROOM.graphs, "overlap": ROOM.overlap}
        return alone, asked, ran


def shown(one: dict[str, Any]) -> str:
    """A pair in words."""
    missing = f"  NOT SEEN: {', '.join(one['missing'])}" if one["missing"] else ""
    gap = f"(gap {one['worst']:.3f}, noise {one['noise']:.3f})"
    return (
        f"{' / '.join(one['pair']):32}{one['tokens']:4} tokens {one['wrong']:3} wrong {one['other']:3} other {gap}"
        f"{one['shared']:5} shared {one['evictions']:2} evicted, {one['replayed']:2} of {one['steps']} steps replayed{missing}"
    )


def main(given: list[str] | None = None) -> int:
    """Ask, judge, report."""
    options, began = parsed(given), time.monotonic()
    chosen = PAIRS if options.pairs >= len(PAIRS) else sorted(random.Random(1).sample(PAIRS, options.pairs), key=PAIRS.index)
    model = spread(models.base("pairs"))
    adapters = made(model)
    alone, asked, ran = served(model, adapters, chosen)
    exact = copy.deepcopy(model).float()
    for name in (None, *adapters):
        judge(model, exact, name, None if name is None else adapters[name], alone + asked)
    lines = [one.line for one in asked]
    sums = {what: sum(line[what] for line in lines) for what in SUMS} | {
        what: max(line[what] for line in lines) for what in ("worst", "noise")
    }
    sums |= {"pairs": len(lines), "alone_wrong": sum(one.wrong for one in alone), "alone_tokens": sum(one.tokens for one in alone)}
    same = sorted(set(ADAPTERS) - unlike(alone + asked))
    lacking = [*(f"{kind} answers as the base does" for kind in same), *(what for line in lines for what in line["missing"])]
    lacking += ["kernels of slots and paged attention"] if models.ON_CARD and not (ran["paged"] and ran["bands"] and ran["joined"]) else []
    fine = not lacking and not sums["wrong"] and not sums["alone_wrong"]
    where = {"dtype": str(model.dtype), "tolerance": TOLERANCE, "machine": machine(), "versions": versions()}
    found = {
        "sums": sums,
        "fine": fine,
        "lacking": lacking,
        "engine": ran,
        "seconds": round(time.monotonic() - began, 1),
        **where,
        "pairs": lines,
    }
    with options.output.open("a") as file:
        file.write(json.dumps(found) + "\n")
    graphs = "CUDA graphs replayed" if models.ON_CARD else "no card here: no CUDA graphs, and plain torch in the kernels' place"
    sys.stdout.write(
        "\n".join([*map(shown, lines), f"{json.dumps(sums)}\n{graphs}; {found['seconds']} s; lacking: {lacking or 'nothing'}"]) + "\n"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
