"""Rows from files of every format, and what is wrong with files that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from faults import faults

from trainables.config import DataConfig
from trainables.data.rows import load_rows

ROWS = [{"prompt": f"relay {i} =", "completion": f" {i}"} for i in range(20)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)


def config(path: Path | str, **fields: Any) -> DataConfig:
    return DataConfig(path=str(path), **fields)


def write(file: Path, content: str | bytes, encoding: str = "utf-8-sig") -> Path:
    content = content.encode(encoding) if isinstance(content, str) else content
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", LINES.replace("\n", "\n\n")),
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("rows.json", LINES),
        ("rows.jsonl.gz", LINES),
        ("rows.txt", LINES),
        ("rows.csv", "prompt,completion\n" + "".join(",".join(r.values()) + "\n" for r in ROWS)),
        ("rows.tsv", "prompt\tcompletion\n" + "".join("\t".join(r.values()) + "\n" for r in ROWS)),
    ],
)
def test_rows_are_the_same_in_all_formats(name: str, text: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, text)
    assert load_rows(config(file)) == ROWS
    assert load_rows(config(file, limit=3)) == ROWS[:3]


def test_parquet_rows_are_the_same_too(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert load_rows(config(tmp_path / "rows.parquet")) == ROWS


def test_files_of_an_installed_package_are_found() -> None:
    path = "package://trainables/embedded/data/target.train.jsonl"
    assert {"prompt", "completion"} <= load_rows(config(path, limit=1))[0].keys()


def test_text_in_a_table_stays_as_it_is_written(tmp_path: Path) -> None:
    long = "a" * 200_000
    file = write(tmp_path / "rows.csv", f'a,b\n007,NA\n1.0,\n"x, ""y""\r\n z",{long}\n')
    rows = [{"a": "007", "b": "NA"}, {"a": "1.0", "b": None}, {"a": 'x, "y"\r\n z', "b": long}]
    assert load_rows(config(file)) == rows


def test_malformed_lines_are_faults_with_their_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", b'{"a": 1}\n{"a": \n[1]\n\n{"a": "\xff"}\n')
    found = faults(load_rows, config(file))
    assert [fault.location for fault in found] == [f"{file}:{line}" for line in (2, 3, 5)]
    facts = ("Expecting value", "a list", "can't decode byte 0xff")
    assert all(fact in fault.rule for fact, fault in zip(facts, found, strict=True))
    assert found[2].remedy == "save it as UTF-8"
    many = write(tmp_path / "many.jsonl", "oops\n" * 12)
    found = faults(load_rows, config(many))
    assert (len(found), found[-1].rule) == (6, "7 more like these")


@pytest.mark.parametrize(
    ("name", "content", "fact", "line"),
    [
        ("rows.csv", b"a,b\n1,2\n1,2,3\n", "more columns than the first line, 2", ":3"),
        ("rows.csv", b"a,b,a\n1,2,3\n", "names a more than once", ":1"),
        ("rows.csv", b"a;b\n1;2\n", "names one column, 'a;b'", ":1"),
        ("rows.tsv", b"a\tb\n1\t\xff\n", "is not UTF-8", ""),
        ("rows.json", b'[{"a": 1},\n{"a": }]', "is no JSON array: Expecting value: line 2", ""),
        ("rows.json", b'[{"a": 1}, 2]', "item 2 is a int", ""),
        ("rows.parquet", b"PAR1 not really PAR1", "is no Parquet file", ""),
    ],
)
def test_malformed_files_are_faults_with_their_place(
    name: str, content: bytes, fact: str, line: str, tmp_path: Path
) -> None:
    file = write(tmp_path / name, content)
    (fault,) = faults(load_rows, config(file))
    assert fault.field == "data.path"
    assert fact in fault.rule
    assert fault.location.removeprefix(str(file)) == line


@pytest.mark.parametrize(
    ("path", "fact", "remedy"),
    [
        ("/nowhere/rows.jsonl", "no such file: /nowhere/rows.jsonl", "paths are relative"),
        ("package://no_such_package/a.jsonl", "'no_such_package' is not installed", ""),
        ("FOLDER", "must be a file", ".parquet"),
        ("FOLDER/empty.jsonl", "holds no rows", ""),
    ],
)
def test_what_is_no_file_of_rows_is_refused_under_its_own_field(
    path: str, fact: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    data = config("a.jsonl", validation_path=path.replace("FOLDER", str(tmp_path)))
    (fault,) = faults(load_rows, data, "validation_path")
    assert fault.field == "data.validation_path"
    assert fact in fault.rule
    assert remedy in fault.remedy


def test_a_hub_data_set_is_read_by_its_subset_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    hub = {
        ("org/set", "fr", "train"): ROWS[:4],
        ("org/set", "fr", "test"): ROWS[4:7],
        ("org/set", None, "train"): ROWS[7:],
        ("org/chats", None, "train"): [{"chat": [{"role": "user", "name": None}], "topic": None}],
    }

    def load(name: str, subset: str | None, split: str) -> datasets.Dataset:
        return datasets.Dataset.from_list(hub[name, subset, split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    subset = {"subset": "fr", "validation_path": "org/set"}
    assert load_rows(config("org/set")) == ROWS[7:]
    assert load_rows(config("org/set", **subset, limit=3)) == ROWS[:3]
    assert load_rows(config("org/set", **subset, split="test")) == ROWS[4:7]
    held_out = config("org/set", **subset, validation_split="test")
    assert load_rows(held_out) == ROWS[:4]
    assert load_rows(held_out, "validation_path") == ROWS[4:7]
    assert load_rows(config("org/set", **subset), "validation_path") == ROWS[:4]
    # As in Parquet, all turns have the fields of each.
    chats = load_rows(config("org/chats", messages="chat"))
    assert chats == [{"chat": [{"role": "user"}], "topic": None}]
