"""The formats of data files: a file's bytes in, one record a line out, each with its number or with what is wrong with it.

Formats by the file's name: .jsonl, .jsonl.gz, .json (a list of objects), .csv (with a header), .parquet; and data sets of the
Hugging Face hub. UTF-8 throughout, a byte-order mark is dropped. Lines are counted as an editor counts them; the rows of a parquet
file and of a hub data set by number, from 1.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graft.data.recognise import LIST_COLUMNS, kind
from graft.errors import DataError

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[\w.\[\]%:+-]+))?", re.ASCII)
NOT_BLANK = re.compile(r"[^ \t\r\n]")


@dataclass(frozen=True)
class Line:
    """One record and its place: a line of a file, counted from 1."""

    number: int
    record: dict[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A line that gave no record."""

    number: int
    column: str
    reason: str


def parse(name: str, blob: bytes) -> Iterator[Line | BadLine]:
    """The records of a file's bytes, by the ending of its name."""
    if name.endswith(".jsonl.gz"):
        return json_lines(name, unzip(name, blob))
    if name.endswith(".jsonl"):
        return json_lines(name, blob)
    if name.endswith(".json"):
        return json_list(name, decode(name, blob))
    if name.endswith(".csv"):
        return csv_rows(name, decode(name, blob))
    if name.endswith(".parquet"):
        return parquet_rows(name, blob)
    raise DataError(f"{name}: unknown format; known are .jsonl, .jsonl.gz, .json, .csv and .parquet")


def unzip(name: str, blob: bytes) -> bytes:
    """The contents of a gzip file, whole or not at all."""
    try:
        return gzip.decompress(blob)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: not a whole gzip file ({error})") from error


def decode(name: str, blob: bytes) -> str:
    """A file's text. Raises DataError that names the line of the first byte that is not UTF-8."""
    refuse_utf16(name, blob)
    try:
        return blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = blob.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: byte 0x{blob[error.start]:02x} is not UTF-8; save the file as UTF-8") from error


def refuse_utf16(name: str, blob: bytes) -> None:
    """UTF-16 announces itself; each of its lines would otherwise be a riddle."""
    if blob.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name}: the file is UTF-16; save it as UTF-8")


def json_lines(name: str, blob: bytes) -> Iterator[Line | BadLine]:
    """One JSON object a line. Blank lines at the end are nothing; between rows they are bad rows."""
    refuse_utf16(name, blob)
    lines = blob.removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    for number, raw in enumerate(lines if lines != [b""] else [], 1):
        if not raw.strip():
            yield BadLine(number, "", "the line is blank")
            continue
        try:
            yield as_line(number, load(raw.decode()))
        except UnicodeDecodeError as error:
            yield BadLine(number, f"character {len(raw[: error.start].decode()) + 1}", f"byte 0x{raw[error.start]:02x} is not UTF-8")
        except json.JSONDecodeError as error:
            yield BadLine(number, f"character {error.pos + 1}", f"broken JSON: {error.msg}")
        except (ValueError, RecursionError) as error:
            yield BadLine(number, "", f"broken JSON: {error}")


def json_list(name: str, text: str) -> Iterator[Line | BadLine]:
    """A list of objects, decoded one by one so that each has its line. Broken JSON ends the file: what follows cannot be found."""
    position = blank(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(f"{name}: must hold a list of objects; for one object a line name the file .jsonl")
    position = blank(text, position + 1)
    number, counted, first = 1, 0, True
    while first is False or text[position : position + 1] != "]":
        number, counted = number + text.count("\n", counted, position), position
        value, position = json_item(name, text, position, number)
        yield as_line(number, value)
        first = False
        if text[position] == "]":
            break
        position = blank(text, position + 1)
    if blank(text, position + 1) < len(text):
        raise DataError(f"{name}: something follows the end of the list")


def json_item(name: str, text: str, position: int, number: int) -> tuple[Any, int]:
    """One item of a list and the position of the comma or bracket after it."""
    try:
        value, end = DECODER.raw_decode(text, position)
        end = blank(text, end)
        if text[end : end + 1] not in (",", "]") or end == len(text):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}, character {error.colno}: broken JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}:{number}: broken JSON: {error}") from error
    return value, end


def blank(text: str, position: int) -> int:
    """The first position at or after `position` that is not JSON whitespace."""
    found = NOT_BLANK.search(text, position)
    return found.start() if found else len(text)


def as_line(number: int, value: Any) -> Line | BadLine:
    """A decoded value as a record, if it is an object."""
    return Line(number, value) if isinstance(value, dict) else BadLine(number, "", f"is {kind(value)}, must be an object")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: of two equal ones a plain decoder silently keeps the last."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in names if names.count(key) > 1)}' stands twice in one object")
    return record


def not_json(constant: str) -> Any:
    """NaN and Infinity are not JSON, whatever Python says."""
    raise ValueError(f"{constant} is not a JSON value")


DECODER = json.JSONDecoder(object_pairs_hook=unique, parse_constant=not_json)


def load(text: str) -> Any:
    """Decode one JSON text. Raises ValueError (JSONDecodeError where the place is known)."""
    return DECODER.decode(text)


def csv_rows(name: str, text: str) -> Iterator[Line | BadLine]:
    """Rows under a header. Cells are texts; list columns (choices, references, messages) hold JSON; `gold` is a number."""
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{name}:{number}: broken CSV: {error}") from error
        if cells is None:
            return
        if header is None:
            header = checked_header(name, cells)
        elif not cells:
            yield BadLine(number, "", "the line is blank")
        elif len(cells) != len(header):
            yield BadLine(number, "", f"has {len(cells)} cells, the header has {len(header)}")
        else:
            yield csv_line(number, dict(zip(header, cells, strict=True)))


def checked_header(name: str, cells: list[str]) -> list[str]:
    """The column names of a CSV file, each once."""
    names = [cell.strip() for cell in cells]
    twice = [column for column in names if names.count(column) > 1]
    if twice:
        raise DataError(f"{name}:1: column '{twice[0]}' stands twice in the header")
    return names


def csv_line(number: int, cells: dict[str, str]) -> Line | BadLine:
    """A CSV row as a record; an empty cell of a column for scoring is a missing value."""
    record: dict[str, Any] = dict(cells)
    for column in ("id", "gold", "choices", "options", "references", "answer"):
        if column in record and not record[column].strip():
            del record[column]
    for column in (column for column in (*LIST_COLUMNS, "gold") if column in record):
        try:
            record[column] = load(record[column])
        except (ValueError, RecursionError):
            return BadLine(number, f"column '{column}'", f"holds '{record[column][:40]}', must be JSON")
    return Line(number, record)


def parquet_rows(name: str, blob: bytes) -> Iterator[Line | BadLine]:
    """The rows of a parquet file. Needs pyarrow."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{name}: reading parquet needs pyarrow: pip install 'graft-peft[parquet]'") from error
    number = 0
    try:
        for batch in parquet.ParquetFile(io.BytesIO(blob)).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield Line(number, record)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable parquet file ({error})") from error


def from_hub(source: str) -> tuple[str, str, Iterator[Line | BadLine]]:
    """(name, sha256 of its rows as JSON lines, rows) of `org/name` (split train) or `org/name:split`. Needs datasets, and the network."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"no such file: {source}; to read it from the hub: pip install 'graft-peft[hub]'") from error
    found = HUB_ID.fullmatch(source)
    assert found is not None, "local_file lets only hub ids through"
    name, part = found["name"], found["split"] or "train"
    try:
        records = [dict(record) for record in datasets.load_dataset(name, split=part)]
    except Exception as error:  # whatever the hub, the network or the data set's own files raise
        raise DataError(f"no file {source}, and the hub gave no data set '{name}' with a split '{part}': {error}") from error
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, default=str).encode() + b"\n")
    return name, digest.hexdigest(), (Line(number, record) for number, record in enumerate(records, 1))
