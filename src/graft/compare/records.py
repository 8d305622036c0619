"""Records of one comparison: `records.jsonl`, one JSON object a line, appended as runs end.

The first line is the plan (what was asked, of which model and data, on which machine), every other line one run:

    {"schema": 1, "kind": "plan", "command": ..., "model": {...}, "data": {...}, "methods": [...], ...}
    {"kind": "run", "run": "lora/seed-0", "method": "lora", "role": "trial" | "final" | "baseline",
     "status": "done" | "failed" | "skipped", "reason": "", ...}

Every field but those shown is optional: null and absent mean "not measured". A line is written whole, flushed and synced
before `append` returns; a killed process can leave at most one torn last line, which reading drops and the next append
removes. When a run is recorded twice (a failed one that was run again), the later line counts. JSON has no NaN: a
non-finite number is stored as null.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from graft.errors import DataError

SCHEMA = 1
FILE = "records.jsonl"
Json = dict[str, Any]
ROLES = ("trial", "final", "baseline")
STATUSES = ("done", "failed", "skipped")


@dataclass(frozen=True)
class Plan:
    """What a comparison was asked to do, and where."""

    model: dict[str, Any]
    data: dict[str, Any]
    command: str = ""
    machine: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None
    methods: tuple[str, ...] = ()
    trials: int | None = None
    seeds: int | None = None
    max_steps: int | None = None
    demo: bool = False
    started: str = ""
    full_command: str = ""


@dataclass(frozen=True)
class Run:
    """One training run, or one evaluation of the base; None means "not measured"."""

    run: str
    method: str
    role: str
    status: str
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    learning_rate: float | None = None
    trainable_parameters: int | None = None
    adapter_bytes: int | None = None
    peak_memory_bytes: int | None = None
    seconds_per_step: float | None = None
    tokens_per_second: float | None = None
    train_tokens: int | None = None
    train_seconds: float | None = None
    steps: int | None = None
    curve: tuple[dict[str, Any], ...] = ()
    metric: str | None = None
    score: float | None = None
    others: dict[str, Any] = field(default_factory=dict)
    validation_score: float | None = None
    validation_loss: float | None = None
    per_item: tuple[float, ...] = ()
    latency_ms: dict[str, Any] = field(default_factory=dict)
    mergeable: bool | None = None
    context_positions: int | None = None
    shots: int | None = None
    sites: tuple[dict[str, Any], ...] = ()
    gated: bool | None = None


@dataclass(frozen=True)
class Records:
    """The plan and the latest record of every run, in the order in which the runs first appeared."""

    plan: Plan
    runs: tuple[Run, ...]

    def find(self, name: str) -> Run | None:
        """Return the latest record of the run called `name`, or None."""
        return next((run for run in self.runs if run.run == name), None)


Record = TypeVar("Record", Plan, Run)
KINDS: dict[str, type[Plan] | type[Run]] = {"plan": Plan, "run": Run}


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Check one record (a plan or a run as in the module's docstring) and append it to the file `path`, durably.

    Raises DataError for a record that reading would refuse or that has a key no report knows, OSError if the disk is full.
    """
    clean = finite(dict(record))
    kind = parse(clean, "new record")
    known = {item.name for item in fields(kind)} | {"kind", "schema"}
    if unknown := sorted(set(clean) - known):
        raise DataError(f"new record: unknown key {unknown[0]!r}; a {clean['kind']} record has {', '.join(sorted(known))}.")
    line = json.dumps(clean, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        mend(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Records:
    """Read a records file, or the one in the folder `path`.

    Raises DataError that names file, line and field when there is no file, no plan, or a line that cannot be used.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path} does not exist; a run folder is what `graft compare --output-dir` wrote.")
    plan: Plan | None = None
    runs: dict[str, Run] = {}
    for number, line in enumerate(lines(path.read_bytes()), 1):
        if line.strip():
            record = parse(decode(line, f"{path}:{number}"), f"{path}:{number}")
            if isinstance(record, Plan):
                plan = record
            else:
                runs[record.run] = record
    if plan is None:
        raise DataError(f"{path} has no plan line; a comparison writes one first, so this is not a records file of Graft's.")
    return Records(plan, tuple(runs.values()))


def lines(blob: bytes) -> list[bytes]:
    """Split a records file into lines; a last one that was torn by a kill is dropped."""
    *whole, tail = blob.split(b"\n")
    return [*whole, tail] if is_json(tail) else whole


def mend(file: Any) -> None:
    """Bring a file opened with "ab+" to a state where a line can follow: a torn last line is cut, a lost newline is set."""
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if is_json(tail):
        file.write(b"\n")
    elif tail:
        file.truncate(file.seek(0, os.SEEK_END) - len(tail))
    file.seek(0, os.SEEK_END)


def is_json(text: bytes) -> bool:
    """Say whether `text` is one whole JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def decode(line: bytes, where: str) -> Json:
    """Decode one line to a JSON object, or raise DataError that starts with `where`."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); delete that line to go on without it.") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a record is a JSON object, not {type(value).__name__}.")
    return value


def parse(value: Json, where: str) -> Plan | Run:
    """Build the Plan or Run that a JSON object holds, or raise DataError that names the field."""
    kind = value.get("kind")
    if kind not in KINDS:
        raise DataError(f"{where}: kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    if value.get("schema", SCHEMA) != SCHEMA:
        raise DataError(f"{where}: schema {value['schema']!r} is not known here (this Graft reads {SCHEMA}); update Graft.")
    record: Plan | Run = build(Plan, value, where) if kind == "plan" else build(Run, value, where)
    if isinstance(record, Run):
        for name, allowed in (("role", ROLES), ("status", STATUSES)):
            if getattr(record, name) not in allowed:
                raise DataError(f"{where}: {name} must be one of {', '.join(allowed)}, not {getattr(record, name)!r}.")
    return record


def build(kind: type[Record], value: Json, where: str) -> Record:
    """Check every known field of `value` against the annotations of `kind` and construct it; null means absent."""
    hints = get_type_hints(kind)
    arguments: Json = {}
    for item in fields(kind):
        given = value.get(item.name)
        if given is None:
            if item.default is MISSING and item.default_factory is MISSING:
                raise DataError(f"{where}: a {value['kind']} record needs {item.name!r}.")
            continue
        if not fits(given, hints[item.name]):
            raise DataError(f"{where}: {item.name} must be {spell(hints[item.name])}, not {str(given)[:60]!r}.")
        arguments[item.name] = tuple(given) if isinstance(given, list | tuple) else given
    return kind(**arguments)


def fits(value: Any, hint: Any) -> bool:
    """Say whether a JSON value has the annotated type (only the annotations used by Plan and Run)."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(fits(value, option) for option in get_args(hint))
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def spell(hint: Any) -> str:
    """Name an annotation in an error message's words."""
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    if get_origin(hint) is UnionType:
        return " or ".join(spell(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list, each item {spell(get_args(hint)[0])}"
    return names.get(hint, "an object")


def finite(value: Any) -> Any:
    """Copy a JSON value with every non-finite number replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
