"""The verb: what every method costs on a model, how each would be trained in a given memory, and which to take.

Everything is read off the model's config (and its tokenizer, for the lengths of data); no weights are read and nothing is fetched but a
hub id's config.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from graft.errors import DataError, GraftError, ModelError
from graft.method import Method
from graft.model import families
from graft.model.load import config_of, default_dtype, tokenizer_of
from graft.model.skeleton import skeleton
from graft.plan.advice import Advice, Situation, advise
from graft.plan.cards import CARDS, Card, bytes_of, named
from graft.plan.counts import Counted, counted
from graft.plan.job import Job, job
from graft.plan.rows import Rows, assumed, rows_of
from graft.plan.search import EPOCHS, Choice, fitting, room, smallest
from graft.plan.settings import USUAL, flags
from graft.plan.setup import Setup


@dataclass(frozen=True)
class Entry:
    """One method's setting: counts, the way to train it in the memory at hand, and where that is too small the smallest that is enough, in
    bytes, with the smallest card that has it (None on a CPU, and where no single card has).
    """

    counted: Counted
    choice: Choice | None = None
    least: int = 0
    card: Card | None = None
    hours: float | None = None
    tokens_per_second: float | None = None
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """What `plan` found: entries by method, the advice, and what it was asked with. `memory` is the card's, in bytes, or on a CPU what the
    process may have; None for any. `dtype` is the base's.
    """

    model: str
    kind: str
    parameters: int
    rows: Rows
    memory: int | None
    card: Card | None
    entries: tuple[Entry, ...]
    situation: Situation
    advice: Advice
    cpu: bool = False
    dtype: torch.dtype = torch.bfloat16


def plan(
    model: str | PretrainedConfig,
    *,
    data: str | None = None,
    memory: str | int | None = None,
    gpu: str | None = None,
    examples: int | None = None,
    need: Iterable[str] = (),
    methods: Mapping[str, Method] | None = None,
) -> Plan:
    """Plan every method (`USUAL`, or `methods` by name) on a model: a hub id, a folder, a .gguf file, or a transformers config.

    `data` gives the rows' lengths, `examples` how many there are; `memory` is the card's ("24GB", or bytes), `gpu` its name, by which the
    memory is known too and times are predicted, or "cpu" for this machine's processor, of which `memory` is what the process may have;
    `need` are keys of `advice.NEEDS`. Raises ModelError, DataError or TargetError.
    """
    if examples is not None and examples < 1:
        raise DataError(f"examples is {examples}; it must be at least 1, or left out where nothing is known of them")
    config = model if isinstance(model, PretrainedConfig) else config_of(model)
    name = model if isinstance(model, str) else config.name_or_path or config.model_type
    cpu = gpu is not None and gpu.strip().lower() == "cpu"
    card = named(gpu) if gpu and not cpu else None
    size = bytes_of(memory) if isinstance(memory, str) else memory or (card.memory if card else None)
    rows = rows_of(data, tokenizer(name), examples) if data else assumed(examples)
    empty = skeleton(config)
    sites = families.sites(empty)

    def makes(method: Method, setup: Setup) -> Job:
        return job(empty, sites, method, setup)

    chosen = methods or USUAL
    dtype = default_dtype(torch.device("cpu")) if cpu else torch.bfloat16
    setup = Setup(tokens=rows.longest, bytes=dtype.itemsize, fused=not cpu, compiled=not cpu, cpu=cpu)
    entries = tuple(entry(one, chosen[one.name], makes, setup, rows, size, card, name) for one in counted(empty, sites, chosen))
    fits = {each.counted.name.split()[0] for each in entries if each.choice}
    base = sum(value.numel() for value in empty.parameters())
    situation = Situation(rows.count, frozenset(need), base, frozenset(fits))
    return Plan(str(name), str(config.model_type), base, rows, size, card, entries, situation, advise(situation), cpu, dtype)


def tokenizer(name: str) -> Any:
    """The model's tokenizer. ModelError that says what else can be done without one."""
    try:
        return tokenizer_of(name)
    except GraftError as error:
        raise ModelError(f"{error}; without a tokenizer leave --data out and give --examples") from error


def entry(one: Counted, method: Method, makes: Any, setup: Setup, rows: Rows, size: int | None, card: Card | None, model: str) -> Entry:
    """One method's entry. Rows are cut to what the context has room for beside its virtual tokens."""
    if one.refused:
        return Entry(one)
    setup = replace(setup, tokens=min(setup.tokens, one.room))
    choice = fitting(makes, method, setup, rows, None if size is None else room(size, setup.cpu), card)
    if choice is None:
        least = smallest(makes, method, setup, rows)
        return Entry(one, least=least, card=None if setup.cpu else next((each for each in CARDS if each.memory >= least), None))
    updates = EPOCHS * rows.count / (choice.setup.batch * choice.setup.accum)
    hours = updates * choice.seconds / 3600 if choice.seconds and rows.count else None
    read = rows.mean if rows.source else setup.tokens
    speed = choice.setup.batch * choice.setup.accum * min(read, choice.setup.tokens) / choice.seconds if choice.seconds else None
    return Entry(one, choice, hours=hours, tokens_per_second=speed, command=command(one.name, choice, rows, model))


def command(name: str, choice: Choice, rows: Rows, model: str) -> str:
    """The command that trains so, as a shell reads it."""
    setup = choice.setup
    words = [f"r={choice.method.r}" if word.startswith("r=") else word for word in name.split()]  # type: ignore[attr-defined]
    named = f"--model {shlex.quote(model)} --data {shlex.quote(rows.source or 'DATA')}"
    parts = [f"graft train {named} {flags(' '.join(words))} --batch-size {setup.batch}"]
    parts += [f"--grad-accum {setup.accum}"] if setup.accum > 1 else []
    parts += [f"--max-length {setup.tokens}", "--checkpointing" if setup.checkpointing else "", "--nf4" if setup.nf4 else ""]
    parts += [f"--optimizer {setup.optimizer}"] if setup.optimizer != "adamw" else []
    unsure = setup.compiled and not rows.count  # training leaves short runs uncompiled, which takes more memory
    parts += ["--compile on"] if unsure or any("compiled" in words for words in choice.given_up) else []
    return " ".join([*filter(None, parts), f"--output-dir runs/{name.split()[0]}"])
