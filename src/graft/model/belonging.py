"""Belonging: which base an adapter is for, in words that a user can act on.

The fingerprint says whether two bases are one. Beside it an adapter's notes hold what says how they differ: the model's class, its
shapes (layers' numbers folded into `*`), and 16 bits of each weight's samples.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch

from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.forms import Form, Replacement, is_idle
from graft.method import Base, Method, Tensors
from graft.model.base import differences, outline, sampled, short, storage
from graft.model.families import logical_shape

log = logging.getLogger("graft")
SHOWN, MARK = 3, 4  # differences shown; hex digits of a weight's mark
DENSE = "dense numbers"
SAID: set[tuple[str, str]] = set()
"""Foreign files' bases that were spoken of: once is enough for a hundred adapters of one base."""


def portrait(model: Any, replaced: Collection[str] = ()) -> dict[str, str]:
    """What an adapter notes of its base, beside the fingerprint."""
    marks = "".join(short(name.encode() + data)[:MARK] for name, data in sampled(model, replaced))
    facts = {"architecture": architecture(model), "shapes": json.dumps(shapes(model), sort_keys=True), "tensors": marks}
    return facts | storage(model)


def architecture(model: Any) -> str:
    """The model's class and type."""
    return f"{type(model).__name__} ({model.config.model_type})"


def shapes(model: Any) -> dict[str, str]:
    """Every parameter's shape, layers' numbers folded into `*`: {"model.layers.*.mlp.up_proj.weight": "2 of 48x32"}."""
    found: dict[str, Counter[str]] = {}
    for name, value in model.named_parameters():
        if "graft" not in name.split("."):
            size = "x".join(str(n) for n in logical_shape(value))
            found.setdefault(re.sub(r"\.\d+\.", ".*.", name), Counter())[size] += 1
    return {name: ", ".join(f"{number} of {size}" for size, number in sizes.items()) for name, sizes in found.items()}


def check(adapter: Adapter, model: Any, own: str, replaced: Collection[str], what: str) -> None:
    """Raise AdapterError if `what` was made for another base than this one, whose fingerprint is `own`.

    A 4-bit copy and the dense weights count as one base. A file without a fingerprint is spoken of once for each base that it names.
    """
    if not adapter.fingerprint:
        say_foreign(adapter.base, str(model.config.name_or_path), what)
        return
    if adapter.fingerprint.count(":") != own.count(":"):
        raise AdapterError(f"cannot load {what}: its fingerprint is damaged")
    found = differences(own, adapter.fingerprint)
    if found == ["weights"] and storage(model).get("weights") != adapter.notes.get("weights"):
        there, here = (one.get("weights", DENSE) for one in (adapter.notes, storage(model)))
        log.warning("%s was trained on a base held in %s, this one is held in %s: they are not quite the same model", what, there, here)
    elif found:
        details = ", ".join(f"{part}{detail(part, adapter.notes, model, replaced)}" for part in found)
        raise AdapterError(
            f"{what} was made for another base ({adapter.base[:200]!r}): this model differs in its {details}; "
            "in Python force=True loads it all the same, where the shapes fit"
        )


def check_outline(origin: Adapter | None, model: Any, what: str) -> None:
    """Raise AdapterError if an adapter, of which only the origin is known yet, is for another architecture or other shapes."""
    if origin is None or origin.fingerprint.count(":") != 2:
        return
    weights = origin.fingerprint.rpartition(":")[2]
    check(origin, model, f"{outline(model)}:{weights}", (), what)


def say_foreign(named: str, own: str, what: str) -> None:
    """Say that only shapes and the name could be checked, once."""
    if (named, own) in SAID:
        return
    SAID.add((named, own))
    if named and own and last(named) != last(own):
        log.warning(
            "%s names %r as its base and this model is %r; it carries no fingerprint, so only the shapes were checked",
            what,
            named[:200],
            own,
        )
    else:
        log.warning("%s carries no fingerprint of its base (%r): only the shapes were checked", what, named[:200] or "no name")


def last(name: str) -> str:
    """The last part of a model's name or path."""
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def detail(part: str, notes: dict[str, str], model: Any, replaced: Collection[str]) -> str:
    """How they differ, in brackets; empty where the adapter does not hold what it takes to say so."""
    if part == "architecture" and "architecture" in notes:
        return f" ({printable(notes['architecture'])} there, {architecture(model)} here)"
    said = differing_shapes(notes, model) if part == "shapes" else differing_weights(notes, model, replaced)
    return f" ({said})" if said and part != "architecture" else ""


def differing_shapes(notes: dict[str, str], model: Any) -> str:
    """The first names and sizes that differ."""
    try:
        there = json.loads(notes.get("shapes", "{}"))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(there, dict) or not there:
        return ""
    here = shapes(model)
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    said = [f"{printable(name)}: {printable(str(there.get(name, 'none')))} there, {here.get(name, 'none')} here" for name in names[:SHOWN]]
    return "; ".join(said) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def differing_weights(notes: dict[str, str], model: Any, replaced: Collection[str]) -> str:
    """How many of the sampled tensors differ."""
    here = {name: short(name.encode() + data)[:MARK] for name, data in sampled(model, replaced)}
    text = notes.get("tensors", "")
    there = [text[k : k + MARK] for k in range(0, len(text), MARK)]
    if len(there) != len(here):
        return ""
    names = [name for (name, own), other in zip(here.items(), there, strict=True) if own != other]
    return f"{len(names)} of {len(here)} tensors have other values, the first is {names[0]}" if names else ""


def printable(text: str) -> str:
    """A file's text, made safe to print."""
    return text.encode("unicode_escape").decode()[:120]


@torch.no_grad()
def say_inert(parts: Sequence[tuple[Method, Iterable[tuple[Tensors, Base]]]], what: str) -> None:
    """Say which parts of an adapter change nothing. It looks no further than the first place that a part changes."""
    idle = [method.kind for method, places in parts if not any(changes(method.form(tensors, base), base) for tensors, base in places)]
    if len(idle) == len(parts):
        log.warning("%s changes nothing (%s): it is as it was before any training", what, ", ".join(idle))
    elif idle:
        log.warning("%s has parts that change nothing: %s", what, ", ".join(idle))


def changes(form: Form, base: Base) -> bool:
    """Whether a form does anything to its module."""
    if isinstance(form, Replacement):
        own = base.parameters()
        return any(not torch.equal(value.to(own[name].dtype), own[name]) for name, value in form.parameters.items())
    return not is_idle(form)
