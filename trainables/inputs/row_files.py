"""Rows of files: JSON lines, a JSON array, CSV, TSV, plain text or Parquet.

All but the last may be gzipped.

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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainables.errors import Fault, UserError

Row = dict[str, Any]
_MAX_FAULTS = 5
_TOO_DEEP, _FLATTEN = "one nested too deep to be read", "leave the row out, or flatten it"
_NOT_UTF8, _AS_UTF8 = "text that is not UTF-8", "save it as UTF-8"
_TOO_LONG, _AS_TEXT = "one with a number of too many digits", "write it as a text, in quotes"
_HALF = "one with half of a character: a surrogate alone, such as \\ud83d"
_WHOLE = "leave the row out, or write the character whole"
# What JSON may begin a surrogate with, alone or not; no tokenizer takes one alone.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]").search
_COMMAS = "commas separate columns, tabs in a .tsv; quote texts that hold one"
_OTHER_SEPARATORS = re.compile(r"[,;\t|]")  # of columns; the file's own is in no name
_OTHER_FORMAT = "name a file of another format by it: .json, .csv, .tsv, .txt or .parquet"


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
        rule, place = f"is not UTF-8: {error.reason}", f"{file}:{_first_not_utf8(file)}"
        raise UserError([Fault(field, rule, _AS_UTF8, location=place)]) from error
    except (OSError, EOFError, zlib.error) as error:  # of gzip
        raise UserError([Fault(field, f"cannot be read: {file} ({error})")]) from error


def data_file_in(folder: Path) -> Path | None:
    """A file of rows in a folder, or one below, of training rather than of others; None if none.

    JSON and text may be anything, so such files count last, and where they are named `train`.
    """
    found = [path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern))]
    files = [path for path in found if path.is_file()]
    rows = [path for path in files if _suffix(path) in (".jsonl", ".parquet", ".csv", ".tsv")]
    texts = [path for path in files if _suffix(path) in (".json", ".txt")]
    candidates = [
        *(path for path in rows if path.name.startswith("train")),
        *rows,
        *(path for path in texts if path.name.split(".")[0] == "train"),
    ]
    return candidates[0] if candidates else None


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
                row = json.loads(line, object_pairs_hook=_with_each_once)
            except json.JSONDecodeError as error:
                problem = f"{line[:40].decode(errors='replace').rstrip()!r} ({error.msg})"
            except (RecursionError, ValueError) as error:
                problem, remedy = _unread(error)
                if number == 1 and problem == _NOT_UTF8:  # as of a workbook, or compressed
                    remedy = f"{_AS_UTF8}, or {_OTHER_FORMAT}"
            else:
                if isinstance(row, dict) and not (_SURROGATE(line) and has_half(row)):
                    rows.append(row)
                    continue
                problem = f"a {type(row).__name__}"
                if isinstance(row, dict):
                    problem, remedy = _HALF, _WHOLE
            rule = f"each line must be a JSON object, got {problem}"
            faults.append(Fault(field, rule, remedy, location=f"{file}:{number}"))
    if faults:
        raise UserError(first_of(faults))
    return rows


class _Twice(ValueError):
    """An object of JSON has two values of one name, of which one would be lost."""


def _with_each_once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise _Twice(f"one that names {name} more than once")
    return row


def _unread(error: ValueError | RecursionError) -> tuple[str, str]:
    """What keeps JSON that is well formed from being read, and a remedy."""
    if isinstance(error, _Twice):
        return str(error), "give each field a name of its own"
    if isinstance(error, UnicodeDecodeError):
        return _NOT_UTF8, _AS_UTF8
    # Python reads integers of at most 4,300 digits.
    return (_TOO_DEEP, _FLATTEN) if isinstance(error, RecursionError) else (_TOO_LONG, _AS_TEXT)


def first_of(faults: list[Fault]) -> list[Fault]:
    """A few of the faults, and how many there are besides."""
    rest = len(faults) - _MAX_FAULTS
    if rest <= 0:
        return faults
    return [*faults[:_MAX_FAULTS], Fault(faults[0].field, f"{rest} more like these")]


def has_half(row: Any) -> bool:
    """Whether a text in what JSON stands for has half of a character."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix


def _first_not_utf8(file: Path) -> int:
    """The number of the first line that is not UTF-8; 1 if there is none."""
    with opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def opened(file: Path) -> gzip.GzipFile | io.BufferedReader:
    """The bytes of a file, unpacked if its name ends in `.gz`."""
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _read_json(file: Path, field: str) -> list[Row]:
    with opened(file) as stream:
        text = stream.read()
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        with suppress(ValueError, RecursionError):
            if isinstance(json.loads(text), dict) and b"\n" in text.strip():
                rule = "must be an array of objects, or one object a line, got one object"
                raise UserError([Fault(field, rule, location=str(file))])
        return _read_jsonl(file, field)  # as many a .json file is
    try:
        rows = json.loads(text, object_pairs_hook=_with_each_once)
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        rule, place = f"is no JSON array: {error.msg}", f"{file}:{error.lineno}"
        raise UserError([Fault(field, rule, location=place)]) from error
    except (RecursionError, ValueError) as error:
        problem, remedy = _unread(error)
        rule = f"each item must be an object, item {_first_unread(text)} is {problem}"
        raise UserError([Fault(field, rule, remedy, location=str(file))]) from error
    if faults := list(_faults_of_items(rows, bool(_SURROGATE(text)), field, file)):
        raise UserError(first_of(faults))
    return list(rows)


def _faults_of_items(
    items: list[Any], may_have_halves: bool, field: str, file: Path
) -> Iterator[Fault]:
    for number, item in enumerate(items, start=1):
        rule = f"each item must be an object, item {number} is"
        if not isinstance(item, dict):
            yield Fault(field, f"{rule} a {type(item).__name__}")
        elif may_have_halves and has_half(item):
            yield Fault(field, f"{rule} {_HALF}", _WHOLE, location=str(file))


def _first_unread(text: bytes) -> int:
    """The number of the first item of an array that cannot be read."""
    decoder, array = json.JSONDecoder(object_pairs_hook=_with_each_once), text.decode()
    number, at = 1, array.index("[") + 1
    with suppress(RecursionError, ValueError):
        while True:
            while array[at] in ", \t\r\n":
                at += 1
            at = decoder.raw_decode(array, at)[1]
            number += 1
    return number


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
