"""Rows of files: JSON lines, a JSON array, CSV, TSV, plain text or Parquet.

All but the last may be gzipped (`.gz`).

Text stays as it is written: libraries that guess types would make 7 of "007", null of "NA".
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainables.errors import Fault, UserError

Row = dict[str, Any]
_MAX_FAULTS = 5
_COMMAS = "commas separate columns, tabs in a .tsv; quote texts that hold one"
_OTHER_SEPARATORS = re.compile(r"[,;\t|]")  # of columns; the file's own is in no name
_AS_UTF_8 = "save it as UTF-8"
_OTHER_FORMAT = (
    "write JSON lines in UTF-8, or name a file of another format by it: .json, .csv, .tsv, .txt or "
    ".parquet"
)


class UnusableRow(UserError):
    """One row cannot be learned, for one fault; it is left out, unless most rows are such."""

    def at(self, index: int, location: str) -> Fault:
        """The fault with the row's number."""
        (fault,) = self.faults
        return replace(fault, rule=f"{fault.rule}: row {index + 1} of {location}")


def mostly_unusable(unusable: Sequence[Fault], rows: int) -> list[Fault]:
    """The first fault, if more than half of the rows are unusable: then a setting is wrong."""
    if 2 * len(unusable) <= rows:
        return []
    first = unusable[0]
    share = f"{len(unusable)} of {rows} rows ({len(unusable) / rows:.0%}) cannot be learned"
    return [replace(first, rule=f"{first.rule}; {share}")]


def read_rows(file: Path, field: str, other: str = ".jsonl") -> list[Row]:
    """The rows of a file in the format that its name ends with, or of `other` if with none of them.

    Raises:
        UserError: it is malformed (with its line), which is a fault of this field.
    """
    readers = {
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".txt": _read_text,
    }
    read = readers.get(_suffix(file), readers[other])
    try:
        return read(file, field)
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8: {error.reason}"
        raise UserError([Fault(field, rule, _AS_UTF_8, location=str(file))]) from error
    except (OSError, EOFError, zlib.error) as error:  # of gzip
        raise UserError([Fault(field, f"cannot be read: {file} ({error})")]) from error


def _read_jsonl(file: Path, field: str) -> list[Row]:
    """The objects of a file's lines, of which empty ones are left out.

    Raises:
        UserError: lines are malformed.
    """
    rows: list[Row] = []
    faults: list[Fault] = []
    with opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            remedy = _OTHER_FORMAT if number == 1 else ""
            try:
                row = parse_json(line)
                if isinstance(row, dict):
                    rows.append(row)
                    continue
                problem = f"a {type(row).__name__}"
            except ValueError as error:
                end = max(40, getattr(error, "pos", 0) + 10)  # a comma may be after all else
                excerpt = line.decode(errors="replace")[end - 40 : end].rstrip()
                problem = f"{excerpt!r} ({getattr(error, 'msg', error)})"
                if isinstance(error, UnicodeDecodeError):
                    remedy = remedy or _AS_UTF_8
            rule = f"each line must be a JSON object, got {problem}"
            faults.append(Fault(field, rule, remedy, location=f"{file}:{number}"))
    if faults:
        raise UserError(first_few(faults))
    return rows


def parse_json(text: bytes) -> Any:
    """What JSON stands for.

    Raises:
        ValueError: it is malformed, too deep or too large for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep to be read") from error


def first_few(faults: list[Fault]) -> list[Fault]:
    """A few of the faults, and how many there are besides."""
    rest = len(faults) - _MAX_FAULTS
    if rest <= 0:
        return faults
    return [*faults[:_MAX_FAULTS], Fault(faults[0].field, f"{rest} more like these")]


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix


def opened(file: Path) -> gzip.GzipFile | io.BufferedReader:
    """The bytes of a file, unpacked if its name ends in `.gz`."""
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _read_json(file: Path, field: str) -> list[Row]:
    with opened(file) as stream:
        text = stream.read()
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return _read_jsonl(file, field)  # as many a .json file is
    try:
        rows = parse_json(text)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise UserError([Fault(field, f"is no JSON array: {error}", location=str(file))]) from error
    rule = "each item must be an object, item"
    faults = [
        Fault(field, f"{rule} {number} is a {type(item).__name__}", location=str(file))
        for number, item in enumerate(rows, start=1)
        if not isinstance(item, dict)
    ]
    if faults:
        raise UserError(first_few(faults))
    return list(rows)


def _read_csv(file: Path, field: str) -> list[Row]:
    """Rows of text under the names in the first line; null where it is empty."""
    rows: list[Row] = []
    delimiter = "\t" if _suffix(file) == ".tsv" else ","
    csv.field_size_limit(1 << 30)  # in characters; else 128 Ki, less than a long document
    with opened(file) as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            names = reader.fieldnames or ()
            _check_are_columns(names, field, f"{file}:{reader.line_num}")
            for row in reader:
                if None in row:
                    rule = f"a row has more columns than the first line, {len(names)}"
                    place = f"{file}:{reader.line_num}"
                    raise UserError([Fault(field, rule, _COMMAS, location=place)])
                rows.append({name: text or None for name, text in row.items()})
        except csv.Error as error:
            place = f"{file}:{reader.line_num}"
            raise UserError([Fault(field, f"is no such table: {error}", location=place)]) from error
    return rows


def _check_are_columns(names: Sequence[str], field: str, place: str) -> None:
    """Refuse a column whose name another has, too: one of them would be lost.

    And one that is several, as spreadsheets separate them where commas are in numbers.
    """
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        rule = f"the first line names {', '.join(twice)} more than once"
        raise UserError([Fault(field, rule, "give each column a name of its own", place)])
    if len(names) == 1 and _OTHER_SEPARATORS.search(names[0]):
        rule = f"the first line names one column, {names[0]!r}"
        raise UserError([Fault(field, rule, _COMMAS, place)])


def _read_text(file: Path, field: str) -> list[Row]:
    """A row with the field `text` for each line that is not blank."""
    with opened(file) as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig")
        texts = [line.removesuffix("\n") for line in lines if line.strip()]
    with suppress(IndexError, ValueError, RecursionError):
        if all(isinstance(json.loads(texts[at]), dict) for at in (0, -1)):
            return _read_jsonl(file, field)  # which any name may have
    return [{"text": text} for text in texts]


def _read_parquet(file: Path, field: str) -> list[Row]:
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(file).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError([Fault(field, f"is no Parquet file: {file} ({error})")]) from error
