"""Reading data strictly: every row is either understood whole or named with its line, its column and the reason.

A source is a file (.jsonl, .jsonl.gz, .json, .csv, .parquet), or, where there is no such file, `org/name` or `org/name:split` on the
Hugging Face hub. All rows of a source have one form (`recognise`).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from graft.data.lines import HUB_ID, BadLine, Line, from_hub, parse
from graft.data.recognise import Form, RowFault, build, recognise
from graft.data.rows import BadRow, Row, Table
from graft.errors import DataError

SHOWN = 5


def read(source: str | Path, *, bad_rows: str = "fail", limit: int | None = None, called: str = "limit") -> Table:
    """Read a file (or a hub data set) into a Table; with `limit`, its first `limit` good rows, and nothing is checked after them.
    `called` is what an error calls the limit.

    `bad_rows="fail"` raises DataError that names the first five bad rows and counts the rest; `"skip"` keeps them in `Table.bad`.
    Raises DataError too for a missing file, an unknown format, a broken archive, and a file without one usable row.
    """
    if bad_rows not in ("fail", "skip"):
        raise DataError(f"bad_rows is '{bad_rows}', must be 'fail' or 'skip'")
    if limit is not None and limit < 1:
        raise DataError(f"{called} is {limit}, must be at least 1")
    path = local_file(source)
    if path is None:
        name, sha256, lines = from_hub(str(source))
    else:
        blob = path.read_bytes()
        name, sha256, lines = path.name, hashlib.sha256(blob).hexdigest(), parse(path.name, blob)
    rows, bad = collect(name, lines, limit)
    if bad and bad_rows == "fail":
        raise DataError(complaint(str(source), bad, len(rows) + len(bad)))
    if not rows:
        raise DataError(f"{source}: no usable row" + (f"; the first problem is {bad[0]}" if bad else ", the file is empty"))
    return Table(tuple(rows), str(source), sha256, tuple(bad))


def local_file(source: str | Path) -> Path | None:
    """The file meant by `source`, or None where it can only be a hub id."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{source} is a folder: name the data file in it")
    known = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not source.endswith(known):
        return None
    raise DataError(f"no such file: {source}")


def collect(name: str, lines: Iterable[Line | BadLine], limit: int | None) -> tuple[list[Row], list[BadRow]]:
    """Turn records into rows; the first good row sets the form that all others must have."""
    rows: list[Row] = []
    bad: list[BadRow] = []
    form: Form | None = None
    for line in lines:
        where = f"{name}:{line.number}"
        if isinstance(line, BadLine):
            bad.append(BadRow(where, line.column, line.reason))
            continue
        try:
            found = recognise(line.record)
            if form is not None and found is not form:
                raise RowFault("", other_form(line.record, found, form))
            rows.append(build(line.record, found, str(line.number), where))
            form = found
        except RowFault as fault:
            bad.append(BadRow(where, fault.column, fault.reason))
        if limit is not None and len(rows) >= limit:
            break
    return rows, bad


def other_form(record: dict[str, Any], found: Form, form: Form) -> str:
    """The sentence for a row whose form is not the file's."""
    absent = [column for column in form.needs if column not in record]
    lacking = f"column '{absent[0]}' is missing: " if absent else ""
    return f"{lacking}the row has the form {found.name}, the rows before it {form.name}"


def complaint(source: str, bad: list[BadRow], total: int) -> str:
    """The error for bad rows: the first few in full, the rest counted."""
    shown = "\n".join(f"  {row}" for row in bad[:SHOWN])
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    way_out = "Correct them, or leave them out (bad_rows='skip'; --bad-rows skip) where a command has it."
    return f"{source}: {len(bad)} of {total} rows cannot be used:\n{shown}{more}\n{way_out}"
