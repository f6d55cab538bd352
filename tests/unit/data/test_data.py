"""From rows in a file to tokens with the loss on the completion alone."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet
import pytest
from byte_tokenizer import of_bytes
from faults import faults
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from pydantic import ValidationError

from trainables.config import DataConfig, ModelConfig, TrainConfig
from trainables.data.chat_template import answer_opening
from trainables.data.chats import Example
from trainables.data.dataset import (
    IGNORED_LABEL,
    labelled,
    tokenize,
    training_order,
    typical_sample,
)
from trainables.data.rows import as_replay, load_rows, read_general_text, row_examples
from trainables.errors import Fault, UserError

MODEL = Path(__file__).parents[3] / "trainables" / "embedded" / "model"
# As models' own: what begins an answer is written where one is asked for.
ASKED = "{% if add_generation_prompt %}<assistant> {% endif %}"
CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}" + ASKED
ROWS = [{"prompt": f"relay {i} 5 18 =", "completion": f" {i % 20}"} for i in range(20)]


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def config(path: Path | str, **fields: Any) -> DataConfig:
    return DataConfig(path=str(path), **fields)


def test_jsonl_rows_are_read_and_blank_lines_skipped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n{"a": "\u00e4 \u2028"}\n', encoding="utf-8")
    assert load_rows(config(file)) == [{"a": 1}, {"a": "\u00e4 \u2028"}]


def test_parquet_rows_are_the_same_as_jsonl_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), file)
    assert load_rows(config(file)) == load_rows(config(jsonl(tmp_path, ROWS))) == ROWS


def test_a_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    assert load_rows(config(jsonl(tmp_path, ROWS), limit=3)) == ROWS[:3]


def test_files_of_an_installed_package_are_found() -> None:
    path = "package://trainables/embedded/data/target.train.jsonl"
    assert {"prompt", "completion"} <= load_rows(config(path, limit=1))[0].keys()


def test_malformed_lines_are_faults_with_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n[1]\n\n"a"\n{"a": "\xff"}\n{"a": "%b"},\n' % (b"b" * 50))
    found = faults(load_rows, config(file))
    assert [fault.location for fault in found] == [f"{file}:{line}" for line in (2, 3, 5, 6, 7)]
    assert {fault.field for fault in found} == {"data.path"}
    assert found[0].rule == ("each line must be a JSON object, got '{\"a\":' (Expecting value)")
    assert found[1].rule == "each line must be a JSON object, got a list"
    assert found[2].rule == "each line must be a JSON object, got a str"
    assert "('utf-8' codec can't decode byte 0xff" in found[3].rule
    assert found[3].remedy == "save it as UTF-8"
    assert found[4].rule.endswith("bbb\"},' (Extra data)")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("rows.json", "".join(f"{json.dumps(row)}\n" for row in ROWS)),
        ("rows.jsonl.gz", "".join(f"{json.dumps(row)}\n" for row in ROWS)),
        ("rows.txt", "\n".join(json.dumps(row) for row in ROWS)),
        ("gzipped.jsonl", "".join(f"{json.dumps(row)}\n" for row in ROWS)),  # without .gz
        ("rows.csv", "prompt,completion\n" + "".join(",".join(r.values()) + "\n" for r in ROWS)),
        (
            "rows.tsv.gz",
            "prompt\tcompletion\n" + "".join("\t".join(r.values()) + "\n" for r in ROWS),
        ),
    ],
)
def test_rows_are_the_same_in_all_formats(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    content, is_packed = text.encode("utf-8-sig"), name.endswith(".gz") or "gzipped" in name
    file.write_bytes(gzip.compress(content) if is_packed else content)
    assert load_rows(config(file)) == ROWS


def test_text_in_a_table_stays_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    long = "a" * 200_000
    file.write_text(f'a,b\n007,NA\n1.0,\n"x, ""y""\r\n z",{long}\n', encoding="utf-8")
    rows = [{"a": "007", "b": "NA"}, {"a": "1.0", "b": None}, {"a": 'x, "y"\r\n z', "b": long}]
    assert load_rows(config(file)) == rows


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz"])
def test_each_line_of_a_plain_text_is_a_row(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    content = " 1. A text\u2028of two.\r\n\n[2]\n{last}".encode("utf-8-sig")
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    texts = [" 1. A text\u2028of two.", "[2]", "{last}"]
    rows = load_rows(config(file, text="text"))
    assert rows == [{"text": text} for text in texts]
    (fault,) = faults(row_examples, config(file, text="body"), rows)
    assert str(fault).endswith(f"absent from row 1 of {file}; the row has text")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("general.txt.gz", "a\u2028b\x0c\n \nNA\n"),
        ("wiki.test.raw", "a\u2028b\x0c\n \nNA\n"),
        ("general", '{"text": "a\u2028b\\f"}\n{"text": "NA"}\n'),
        (
            "general.jsonl",
            '{"text": "a\u2028b\\f"}\n{"text": null}\n{"text": " "}\n{"text": "NA"}\n',
        ),
        ("general.csv", "text,n\na\u2028b\x0c,1\n,2\nNA,3\n"),
    ],
)
def test_general_texts_are_read_as_training_data_are(
    name: str, content: str, tmp_path: Path
) -> None:
    file, encoded = tmp_path / name, content.encode("utf-8-sig")
    file.write_bytes(gzip.compress(encoded) if name.endswith(".gz") else encoded)
    assert read_general_text(str(file)) == ["a\u2028b\x0c", "NA"]


@pytest.mark.parametrize("first", ['{"a": "text"}', '{"a": 1} and more', "[" * 100_000])
def test_a_plain_text_may_begin_as_json_does(first: str, tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text(f"{first}\nand more\n")
    assert load_rows(config(file, text="text")) == [{"text": first}, {"text": "and more"}]


def test_json_lines_of_any_name_are_no_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "corpus.log"
    file.write_text('{"text": "\\ud83d"}\n{"text": "c"}\n')
    with pytest.raises(UserError, match="each line must be a JSON object"):
        read_general_text(str(file))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (f'{{"a": {"[" * 100_000}{"]" * 100_000}}}', "it is nested too deep to be read"),
        (f'{{"a": {"9" * 5000}}}', "Exceeds the limit (4300 digits)"),
        (r'{"a": {"b": ["\ud83d"]}}', r"'utf-8' codec can't encode character '\ud83d'"),
    ],
)
def test_a_row_that_cannot_be_taken_whole_is_a_fault(
    row: str, problem: str, tmp_path: Path
) -> None:
    rows = [r'{"a": {"b": 1, "c": "\ud83d\ude00 \uD800\uDC00"}, "b": 3}', row, "{}"]
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text("\n".join(rows))
    (found,) = faults(load_rows, config(lines))
    assert found.rule.startswith(f"each line must be a JSON object, got {row[:40]!r} ({problem}")
    assert found.location == f"{lines}:2"
    array.write_text(f"[{', '.join(rows)}]")
    (found,) = faults(load_rows, config(array))
    assert found.rule.startswith(f"is no JSON array: {problem}")
    assert found.location == str(array)
    array.write_text(f"[{rows[0]}]")
    assert len(load_rows(config(array))) == 1


@pytest.mark.parametrize(
    ("name", "content", "rule", "line"),
    [
        ("rows.csv", b"a,b\n1,2\n1,2,3\n", "a row has more columns than the first line, 2", ":3"),
        ("rows.csv", b"a,b,a\n1,2,3\n", "the first line names a more than once", ":1"),
        ("rows.csv", b'a,b\n1,"2\n', "is no such table: unexpected end of data", ":1"),
        ("rows.tsv", b"a\tb\n1\t\xff\n", "is not UTF-8: invalid start byte", ""),
        ("rows.txt", b"a\n" * 9999 + b"\xff\n", "is not UTF-8: invalid start byte", ""),
        ("rows.json", b'[{"a": 1},\n{"a": }]', "is no JSON array: Expecting value: line 2", ""),
        ("rows.json", b'[{"a": 1}, 2]', "each item must be an object, item 2 is a int", ""),
        ("rows.json", b'[\n"\xff"]', "is not UTF-8: invalid start byte", ""),
        ("rows.jsonl.gz", b'{"a": 1}', "cannot be read: ", ""),
    ],
)
def test_malformed_files_of_other_formats_are_faults(
    name: str, content: bytes, rule: str, line: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    (fault,) = faults(load_rows, config(file))
    assert fault.rule.startswith(rule)
    assert fault.location.removeprefix(str(file)) == line


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("rows.csv", "a;b\n1,2;3\n", "commas separate columns, tabs in a .tsv; quote texts that"),
        ("rows.csv", "a;b\n1;2\n", "commas separate columns, tabs in a .tsv; quote texts that"),
        ("rows.tsv", "a,b\n1,2\n", "commas separate columns, tabs in a .tsv; quote texts that"),
        ("rows.xlsx", "PK\x03\x04\u00e9", "write JSON lines in UTF-8, or name a file of another"),
        ("rows.csv", "a,b\n\u00e9,1\n", "save it as UTF-8"),
        ("rows.jsonl", '{"a": "\u00e9"}\n', "write JSON lines in UTF-8"),
        ("rows.json", '[{"a": "\u00e9"}]\n', "save it as UTF-8"),
    ],
)
def test_what_spreadsheets_save_otherwise_is_told_with_a_remedy(
    name: str, content: str, remedy: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="latin-1")
    (fault,) = faults(load_rows, config(file))
    assert fault.remedy.startswith(remedy)


def test_a_file_whose_name_has_no_format_is_told_of_them(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("question,answer\na,b\n")
    first, second = faults(load_rows, config(file))
    assert first.remedy.endswith("of another format by it: .json, .csv, .tsv, .txt or .parquet")
    assert second.remedy == ""


def test_of_many_malformed_lines_a_few_are_shown_and_all_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("oops\n" * 12)
    found = faults(load_rows, config(file))
    assert len(found) == 6
    assert found[-1].rule == "7 more like these"
    file.write_text("oops\n" * 5)
    assert found[:5] == faults(load_rows, config(file))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(content: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert faults(load_rows, config(file))[0].rule == f"holds no rows: {file}"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "./rows"])
def test_a_missing_file_is_refused_under_its_own_field(name: str) -> None:
    data = config("/nowhere/a.jsonl", validation_path=name)
    (fault,) = faults(load_rows, data, "validation_path")
    assert fault.field == "data.validation_path"
    assert fault.rule.startswith("no such file: ")
    assert fault.remedy.startswith("paths are relative to the sweep file's folder")


def test_a_file_of_a_package_that_is_not_installed_is_refused() -> None:
    (fault,) = faults(load_rows, config("package://no_such_package/a.jsonl"))
    assert fault.rule == "package 'no_such_package' is not installed (pip install it)"


@pytest.mark.parametrize(("kept", "end"), [(15, b""), (10, b"\xff" * 20)])
def test_a_damaged_gzip_file_is_refused(kept: int, end: bytes, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"a": "b"}\n' * 9)[:kept] + end)
    (fault,) = faults(load_rows, config(file))
    assert fault.rule.startswith(f"cannot be read: {file} (")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1 not really PAR1")
    (fault,) = faults(load_rows, config(file))
    assert fault.rule.startswith("is no Parquet file")


def test_fields_absent_from_a_row_are_named_with_those_it_has() -> None:
    data = config("rows.jsonl", prompt="{{ question }} {{ hint }}", completion="{{ answer }}")
    rows = [{"question": "q", "hint": "h", "answer": "a"}, {"question": "q", "answer": "a"}]
    (fault,) = faults(row_examples, data, rows)
    assert fault.field == "data.prompt"
    assert fault.rule == "names hint, absent from row 2 of rows.jsonl"
    assert fault.remedy == "the row has question, answer"


def remedies(fields: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    """By field, what is told after the names of the fields that the row has."""
    told = faults(row_examples, config("rows.jsonl", **fields), [row])
    has = f"the row has {', '.join(row)}"
    return {fault.field: fault.remedy.removeprefix(has) for fault in told}


@pytest.mark.parametrize("role", ["role", "from"])
def test_of_rows_of_chats_without_their_field_s_name_it_is_told(role: str) -> None:
    row = {"id": 1, "notes": [], "tags": ["a"], "talk": [{role: "user"}, {role: "assistant"}]}
    told = "; name chats by data.messages: talk"
    both = dict.fromkeys(("data.prompt", "data.completion"), told)
    assert remedies({}, row) == both
    assert remedies({}, row | {"talk": [*row["talk"], "a"]}) == dict.fromkeys(both, "")
    (fault,) = as_replay([Fault("data.prompt", "", told)])
    assert fault.remedy == "; name chats by data.replay.messages: talk"


ODD = {"Full Question": "q", "ground-truth": "a"}


def test_fields_whose_names_are_none_in_jinja_are_had_from_the_row() -> None:
    prompt, completion = "{{ row['Full Question'] }}", " {{ row['ground-truth'] }}"
    data = config("rows.jsonl", prompt=prompt, completion=completion)
    assert row_examples(data, [ODD, ODD]) == [[Example("q", " a")]] * 2


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("{{ Full Question }}", "is no valid template: '{{ Full Question }}' (expected token "),
        ("{{ ground-truth }}", "names ground, truth, absent from row 1 of rows.jsonl"),
    ],
)
def test_how_to_have_such_fields_is_told_where_a_template_fails(prompt: str, rule: str) -> None:
    (fault,) = faults(row_examples, config("rows.jsonl", prompt=prompt, completion="a"), [ODD])
    assert fault.rule.startswith(rule)
    assert fault.remedy.endswith("write row['Full Question'] for the field Full Question")


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ({"ground-truth": "a"}, "'dict object' has no attribute 'Full Question'"),
        (ODD | {"Full Question": None}, "what it prints is null"),
    ],
)
def test_such_fields_are_checked_in_each_row(last: dict[str, str | None], told: str) -> None:
    data = config("rows.jsonl", prompt="{{ row['Full Question'] }}", completion="a")
    (fault,) = faults(row_examples, data, [ODD, last])
    assert (fault.field, fault.rule) == (
        "data.prompt",
        f"cannot be rendered on row 2 of rows.jsonl: {told}",
    )


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("question", "write {{ question }}"),
        (" ground-truth ", "write {{ row['ground-truth'] }}"),
        ("{question}: {n}, {n}", "write {{ question }} and {{ n }}"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "completion", "system"])
def test_a_field_s_name_that_no_template_fills_in_is_a_fault(
    field: str, text: str, remedy: str
) -> None:
    fields = {"prompt": "{{ n }}", "completion": "{{ n }}", field: text}
    data = config("rows.jsonl", chat_template=True, **fields)
    (fault,) = faults(row_examples, data, [{"question": "q", "ground-truth": "a", "n": "1"}])
    assert (fault.field, fault.remedy) == (f"data.{field}", remedy)
    assert fault.rule == f"is one text for all rows: {text!r}"


@pytest.mark.parametrize(
    "prompt", ["", "A question", "{answer}", "{question}: {{ n }}", "{{ '{question}' }}"]
)
def test_a_text_for_all_rows_that_is_meant_so_is_none(prompt: str) -> None:
    data = config("rows.jsonl", prompt=prompt, completion="{{ n }}")
    ((example,),) = row_examples(data, [{"question": "q", "n": "1"}])
    assert example.answer == "1"


def test_a_field_that_is_called_row_is_the_field() -> None:
    data = config("rows.jsonl", prompt="{{ row }}", completion="a")
    assert row_examples(data, [{"row": "r"}]) == [[Example("r", "a")]]


@pytest.mark.parametrize("name", ["path", "validation_path"])
def test_a_folder_is_said_to_be_none_of_the_files(
    name: Literal["path", "validation_path"], tmp_path: Path
) -> None:
    data = config(tmp_path, validation_path=f"{tmp_path}/")
    (fault,) = faults(load_rows, data, name)
    assert (fault.field, fault.rule) == (f"data.{name}", f"must be a file, is none: {tmp_path}")
    assert fault.remedy == "give a .jsonl, .json, .csv, .tsv, .txt or .parquet"


def test_both_templates_are_checked_and_a_malformed_one_is_a_fault() -> None:
    data = config("rows.jsonl", prompt="{{ question", completion="{{ answer")
    first, second = faults(row_examples, data, [{"question": "q"}])
    assert (first.field, second.field) == ("data.prompt", "data.completion")
    assert first.rule.startswith("is no valid template: '{{ question' (unexpected end of template")


def test_a_field_asked_for_only_where_defined_may_be_absent() -> None:
    data = config("rows.jsonl", prompt="{% if hint is defined %}{{ hint }}{% endif %}{{ prompt }}")
    rows = [{"prompt": "p", "completion": "c"}, {"hint": "h", "prompt": "p", "completion": "c"}]
    assert row_examples(data, rows) == [[Example("p", "c")], [Example("hp", "c")]]


def test_null_is_no_text() -> None:
    data = config("rows.jsonl", prompt="{{ question }}", completion="A: {{ answer }}")
    rows = [{"question": "a", "answer": "b"}, {"question": "a", "answer": None}]
    (fault,) = faults(row_examples, data, rows)
    assert fault.field == "data.completion"
    assert fault.rule == "prints answer, null in row 2 of rows.jsonl"
    assert fault.remedy == "leave such rows out"


def test_a_null_of_the_system_s_turn_may_be_left_out_as_the_turn_then_is() -> None:
    data = config("rows.jsonl", chat_template=True, system="{{ s }}")
    rows: list[dict[str, object]] = [{**row, "s": None} for row in ROWS[:1]]
    (fault,) = faults(row_examples, data, rows)
    assert fault.rule == "prints s, null in row 1 of rows.jsonl"
    assert "{% if s %} ... {% endif %} around it" in fault.remedy


@pytest.mark.parametrize(
    "answer", ["{{ answer | trim }}", "{{ 'A: ' ~ answer }}", "{{ [answer] | join }}"]
)
def test_null_is_no_text_for_a_filter_either(answer: str) -> None:
    data = config("rows.jsonl", prompt=answer, completion="{{ question }}")
    (fault,) = faults(row_examples, data, [{"question": "a", "answer": None}])
    assert fault.rule == "prints answer, null in row 1 of rows.jsonl"


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ a.hint }}",
        "{{ a.hint | trim }}",
        "{{ row['a']['hint'] | upper }}",
        "{{ 'Hint: ' ~ a.hint }}",
        "{{ a.get('hint') | trim }}",
        "{{ a.others | join(', ') }}",
        "{% for other in a.others %}{{ other | trim }}{% endfor %}",
    ],
)
def test_null_within_a_field_is_no_text_either(prompt: str) -> None:
    rows = [{"a": {"hint": None, "others": ["x", None]}, "completion": "c"}]
    (fault,) = faults(row_examples, config("rows.jsonl", prompt=prompt), rows)
    assert fault.rule == "cannot be rendered on row 1 of rows.jsonl: what it prints is null"


def test_a_template_may_ask_for_null_within_a_field_and_write_it_as_json() -> None:
    asks = "{{ a.hint or 'x' }}{{ a.hint == none }}{{ a.hint is none }}{{ hint == none }}"
    asks += "{{ a.others | reject('none') | join }} {{ a | tojson }}"
    rows = [{"a": {"hint": None, "others": ["y", None]}, "hint": None, "completion": "c"}]
    ((example,),) = row_examples(config("rows.jsonl", prompt=asks), rows)
    assert example.prompt == 'xTrueTrueTruey {"hint": null, "others": ["y", null]}'
    assert rows[0]["a"] == {"hint": None, "others": ["y", None]}


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("{{ a.values }}", "it prints a builtin_function_or_method, which is no text"),
        ("{{ a.list | map('upper') }}", "it prints a generator, which is no text"),
        ("{{ raw }}", "it prints a bytes, which is no text"),
        ("{{ number }}", "what it prints is NaN"),
    ],
)
def test_what_python_alone_would_write_is_no_text(prompt: str, told: str) -> None:
    """Such as `<built-in method values of dict object at 0x7f>`, other for each row."""
    row = {"a": {"values": "v", "list": ["x"]}, "raw": b"x", "number": float("nan")}
    (fault,) = faults(row_examples, config("rows.jsonl", prompt=prompt, completion="c"), [row])
    assert fault.rule.startswith(f"cannot be rendered on row 1 of rows.jsonl: {told}")


def test_numbers_and_times_are_text() -> None:
    row = {"a": {"values": "v"}, "n": 2.5, "d": date(2024, 7, 26), "t": Decimal("1.50")}
    prompt = "{{ a['values'] }} {{ n }} {{ d }} {{ t }} {{ n > 2 }} {{ d.year }}"
    ((example,),) = row_examples(config("rows.jsonl", prompt=prompt, completion="c"), [row])
    assert example.prompt == "v 2.5 2024-07-26 1.50 True 2024"


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("{% if a is none and b is none %}{{ a }}{% endif %}", "prints a, b, null in row 1 of"),
        ("{{ 1 + a }}{% if b %}{{ b }}{% endif %}", "prints a, b, null in row 1 of rows"),
        (
            "{% if a %}{{ a }}{% endif %}{{ 1 // 0 }}",
            "cannot be rendered on row 1 of rows.jsonl: integer",
        ),
    ],
)
def test_where_what_a_template_lacks_is_not_all_that_is_wrong(prompt: str, rule: str) -> None:
    rows = [{"a": None, "b": None, "completion": "c"}]
    (fault,) = faults(row_examples, config("rows.jsonl", prompt=prompt), rows)
    assert fault.rule.startswith(rule)


def test_null_may_stand_where_the_template_asks_for_it() -> None:
    prompt = "{% if hint %}{{ hint }} {% endif %}{{ question }}{{ hint or '!' }}"
    prompt += "{% if hint is not none %}{{ hint }}{% endif %}"
    data = config("rows.jsonl", prompt=prompt, completion="{{ answer | default('-', true) }}")
    rows = [{"question": "q", "hint": None, "answer": None}]
    assert row_examples(data, rows) == [[Example("q!", "-")]]


def test_functions_of_jinja_are_no_fields() -> None:
    data = config("rows.jsonl", prompt="{% for i in range(2) %}{{ a[i] }}{% endfor %}")
    row_examples(data, [{"a": ["x", "y"], "completion": "c"}])


def test_templates_keep_their_white_space() -> None:
    data = config("rows.jsonl", prompt="{{ a }}\n", completion=" {{ a }}")
    assert row_examples(data, [{"a": "x"}]) == [[Example("x\n", " x")]]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ a.append.__globals__ }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 / 0 }}",
        "{{ a.no_such_thing.deeper }}",
    ],
)
def test_templates_are_sandboxed_and_what_they_raise_names_template_and_row(
    template: str,
) -> None:
    data = config("rows.jsonl", prompt="{{ b }}", completion=template)
    rows = [{"a": [1], "b": ""}]
    (fault,) = faults(row_examples, data, rows)
    assert fault.field == "data.completion"
    assert fault.rule.startswith("cannot be rendered on row 1 of rows.jsonl: ")


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "q"}], {"text": "q"}])
def test_what_a_template_prints_must_be_text(prompt: object) -> None:
    """As in conversational rows of TRL's: Python's own notation would be learned."""
    row = {"prompt": prompt, "completion": "c"}
    data = config("rows.jsonl")
    (fault,) = faults(row_examples, data, [row])
    assert fault.field == "data.prompt"
    kind = type(prompt).__name__
    told = f"cannot be rendered on row 1 of rows.jsonl: it prints a {kind}, which is no text"
    assert fault.rule == f"{told}; join it, or name chats by `messages`"
    joined = config("rows.jsonl", prompt="{{ prompt | map('string') | join }}{{ prompt | tojson }}")
    row_examples(joined, [row])


def test_what_is_no_text_is_found_in_any_row() -> None:
    rows = [{"prompt": "p", "completion": "c"}] * 3 + [{"prompt": "p", "completion": ["c", "d"]}]
    (fault,) = faults(row_examples, config("rows.jsonl"), rows)
    assert fault.field == "data.completion"
    assert fault.rule.startswith("cannot be rendered on row 4 of rows.jsonl: it prints a list")
    of_pairs = config("rows.jsonl", prompt="{{ {'a': 1}.items() | first }}")
    (fault,) = faults(row_examples, of_pairs, rows[:3])
    assert fault.rule.startswith("cannot be rendered on row 1 of rows.jsonl: it prints a tuple")


def test_several_bad_rows_are_told_at_once_a_few_of_many() -> None:
    good: dict[str, Any] = {"prompt": "p", "completion": "c"}
    bad = [{"prompt": "p", "completion": None}, {"prompt": "p"}, good | {"completion": ["c"]}]
    data = config("rows.jsonl", completion="A: {{ completion }}")
    assert [fault.rule for fault in faults(row_examples, data, [good, *bad])] == [
        "prints completion, null in row 2 of rows.jsonl",
        "names completion, absent from row 3 of rows.jsonl",
        "cannot be rendered on row 4 of rows.jsonl: it prints a list, which is no text; join it, "
        "or name chats by `messages`",
    ]
    found = faults(row_examples, data, [good, *bad * 3])
    assert (len(found), found[-1].rule) == (6, "4 more like these")


def test_a_name_absent_from_the_first_row_is_told_once() -> None:
    rows = [{"question": "q", "completion": "c"}] * 3
    (fault,) = faults(row_examples, config("rows.jsonl"), rows)
    assert fault.rule == "names prompt, absent from row 1 of rows.jsonl"


def test_a_template_cannot_change_the_rows() -> None:
    data = config("rows.jsonl", prompt="{{ a.append(1) }}")
    rows = [{"a": [0], "completion": "c"}]
    with pytest.raises(UserError):
        row_examples(data, rows)
    assert rows[0]["a"] == [0]


def tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_loss_is_on_completion_and_end_alone(tokenizer: Any, tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, ROWS), validation_fraction=0)
    tokenized = tokenize(data, tokenizer, seed=0)
    assert len(tokenized.train) == len(ROWS)
    samples = {tuple(sample["input_ids"]): sample for sample in tokenized.train}
    for row in ROWS:
        prompt = [tokenizer.bos_token_id, *tokens(tokenizer, row["prompt"])]
        answer = [*tokens(tokenizer, row["completion"]), tokenizer.eos_token_id]
        sample = samples[*prompt, *answer]
        assert sample["labels"] == [IGNORED_LABEL] * len(prompt) + answer
        assert len(answer) >= 2


@pytest.mark.parametrize(
    ("prompt", "is_added"),
    [("relay 1 5 =", True), ("relay 1 <eos>", True), ("relay 1 <eos>", False)],
)
def test_an_end_that_the_tokenizer_adds_is_not_the_prompt_s(
    prompt: str, is_added: bool, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    ending = AutoTokenizer.from_pretrained(MODEL, add_bos_token=False, add_eos_token=is_added)
    assert ending(prompt)["input_ids"][-1] == ending.eos_token_id
    rows = [{"prompt": prompt, "completion": " 2 3"}]
    (sample,) = tokenize(config(jsonl(tmp_path, rows)), ending, seed=0).train
    answer = [*tokens(ending, " 2 3"), ending.eos_token_id]
    before = tokens(ending, prompt)
    assert sample["input_ids"] == before + answer
    assert sample["labels"] == [IGNORED_LABEL] * len(before) + answer


def test_the_end_is_not_put_twice(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "relay 1 =", "completion": f" 2 {tokenizer.eos_token}"}]
    (sample,) = tokenize(config(jsonl(tmp_path, rows)), tokenizer, seed=0).train
    assert sample["input_ids"].count(tokenizer.eos_token_id) == 1


class Characters:
    """A tokenizer with one token a character, which sees every space."""

    eos_token_id = 0
    bos_token = "\x01"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return f"{self.bos_token}<user>{messages[0]['content']}<assistant>"


@pytest.mark.parametrize(
    ("prompt", "spaces"), [("ab  ", "  "), ("ab \n", ""), ("ab\n ", " "), ("ab\t", "\t")]
)
def test_a_trailing_space_belongs_to_the_completion_and_a_line_break_to_the_prompt(
    prompt: str, spaces: str, tmp_path: Path
) -> None:
    rows = [{"prompt": prompt, "completion": "cd"}]
    (sample,) = tokenize(config(jsonl(tmp_path, rows)), Characters(), seed=0).train
    assert sample["input_ids"] == [1, *map(ord, prompt + "cd"), 0]
    learned = [*map(ord, spaces + "cd"), 0]
    assert sample["labels"] == [IGNORED_LABEL] * (1 + len(prompt) - len(spaces)) + learned


@given(st.text(st.sampled_from("ab \n"), max_size=6), st.text(st.sampled_from("ab "), max_size=6))
def test_labels_are_the_ids_or_ignored_and_never_all_ignored(prompt: str, completion: str) -> None:
    from trainables.data.dataset import _encode

    sample, _ = _encode(Characters(), DataConfig(path="x"), Example(prompt, completion), prompt)
    assert len(sample["labels"]) == len(sample["input_ids"])
    pairs = list(zip(sample["input_ids"], sample["labels"], strict=True))
    assert all(label in (IGNORED_LABEL, token) for token, label in pairs)
    learned = [label for _, label in pairs if label != IGNORED_LABEL]
    spaces = prompt[len(prompt.rstrip(" ")) :]
    assert learned == [*map(ord, spaces + completion), 0]


class JoiningBreaks(Characters):
    """Two line breaks are one token."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return super().__call__(text.replace("\n\n", "N"), add_special_tokens)


def test_a_line_break_that_is_part_of_the_completion_s_first_token_is_learned_with_it() -> None:
    from trainables.data.dataset import _encode

    sample, is_merged = _encode(JoiningBreaks(), DataConfig(path="x"), Example("a\n", "\nb"), "a\n")
    assert not is_merged
    expected = {"input_ids": [1, ord("a"), ord("N"), ord("b"), 0]}
    assert sample == expected | {"labels": [IGNORED_LABEL] * 2 + [ord("N"), ord("b"), 0]}


class Merging(Characters):
    """A word is one token, and its beginning several."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return super().__call__(text.replace("abcd", "w"), add_special_tokens)


def test_where_a_completion_joins_the_prompt_s_last_tokens_its_end_is_learned() -> None:
    from trainables.data.dataset import _encode

    sample, is_merged = _encode(Merging(), DataConfig(path="x"), Example("abc", "d"), "abc")
    assert is_merged
    assert sample == {"input_ids": [1, ord("w"), 0], "labels": [IGNORED_LABEL] * 2 + [0]}


def test_a_first_token_that_nothing_predicts_does_not_count() -> None:
    assert labelled({"input_ids": [5, 6, 7], "labels": [5, IGNORED_LABEL, 7]}) == 1


def test_samples_longer_than_allowed_are_left_out_and_counted(tmp_path: Path) -> None:
    """Those to train on, and those held out."""
    rows = [{"prompt": "a" * size, "completion": "b"} for size in range(1, 11)]
    file = jsonl(tmp_path, rows)
    held_out = jsonl(tmp_path, rows[:7], "held_out.jsonl")
    data = config(file, max_length=8, validation_path=str(held_out))
    tokenized = tokenize(data, Characters(), seed=0)
    for samples in (tokenized.train, tokenized.validation):
        assert sorted(len(sample["input_ids"]) for sample in samples) == [4, 5, 6, 7, 8]
    assert (tokenized.skipped, tokenized.validation_skipped) == (5, 2)


def test_it_is_refused_when_every_sample_is_too_long(tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, ROWS), max_length=4, validation_fraction=0)
    (fault,) = faults(tokenize, data, Characters(), 0)
    assert fault.field == "data.max_length"
    assert fault.rule == "every one of the 20 samples is longer than 4 tokens"
    assert fault.remedy == "raise it"


def texts(samples: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(sample["input_ids"]) for sample in samples]


def test_the_split_is_disjoint_complete_and_decided_by_the_seed(tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, ROWS), validation_fraction=0.24)  # 4.8 of 20
    one, same, other = (tokenize(data, Characters(), seed) for seed in (3, 3, 4))
    assert len(one.validation) == 5
    assert not set(texts(one.validation)) & set(texts(one.train))
    assert len({*texts(one.validation), *texts(one.train)}) == len(ROWS)
    assert (texts(one.train), texts(one.validation)) == (texts(same.train), texts(same.validation))
    assert set(texts(one.validation)) != set(texts(other.validation))


@given(st.integers(1, 12), st.floats(0, 0.999))
def test_something_is_always_left_to_train_on(count: int, fraction: float) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        file = jsonl(Path(folder), ROWS[:count])
        tokenized = tokenize(config(file, validation_fraction=fraction), Characters(), seed=0)
    assert tokenized.train
    assert len(tokenized.train) + len(tokenized.validation) == count


def test_rows_for_validation_of_their_own_leave_all_others_to_train(tmp_path: Path) -> None:
    held_out = jsonl(tmp_path, [{"prompt": "q", "completion": "a"}], "held_out.jsonl")
    data = config(jsonl(tmp_path, ROWS), validation_path=str(held_out))
    tokenized = tokenize(data, Characters(), seed=0)
    assert len(tokenized.train) == len(ROWS)
    assert texts(tokenized.validation) == [(1, ord("q"), ord("a"), 0)]


def test_prompts_are_of_held_out_rows_and_then_of_others_where_those_are_few(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"q{number}", "completion": "a"} for number in range(2000)]
    data = config(jsonl(tmp_path, rows), validation_fraction=4 / len(rows))
    tokenized = tokenize(data, Characters(), seed=0)
    held_out = {bytes(s["input_ids"][1:-2]).decode() for s in tokenized.validation}
    assert set(tokenized.prompts[:4]) == held_out
    assert len(held_out) == 4
    assert len(set(tokenized.prompts)) == len(rows)


def test_prompts_are_from_all_over_files_that_are_sorted(tmp_path: Path) -> None:
    """Samples stay in the files' order, which sweeps begun earlier have trained in."""

    def of_two_topics(name: str, topics: str) -> list[dict[str, str]]:
        return [{"prompt": f"{t}{name}{n}", "completion": "a"} for t in topics for n in range(50)]

    rows, held_out = of_two_topics("t", "ab"), of_two_topics("h", "cd")
    file = jsonl(tmp_path, held_out, "held_out.jsonl")
    data = config(jsonl(tmp_path, rows), validation_path=str(file))
    one, same, other = (tokenize(data, Characters(), seed) for seed in (3, 3, 4))
    assert sorted(one.prompts[:100]) == sorted(row["prompt"] for row in held_out)
    for first, topics in ((0, "cd"), (100, "ab")):
        assert {prompt[0] for prompt in one.prompts[first : first + 16]} == set(topics)
    assert one.prompts == same.prompts != other.prompts
    assert one.train == other.train
    assert [bytes(s["input_ids"][1:-2]).decode() for s in one.train] == [r["prompt"] for r in rows]


def test_prompts_are_of_many_chats_where_each_has_many_answers(tmp_path: Path) -> None:
    rows = []
    for number in range(50):
        turns = [{"role": r, "content": f"{number}"} for r in ("user", "assistant")]
        rows.append({"turns": turns * 20})
    chats = {"messages": "turns", "answers": "all", "max_length": 4000}
    data = config(jsonl(tmp_path, rows), **chats, validation_fraction=0.2)
    tokenized = tokenize(data, Characters(), seed=0)
    of_chat = {prompt.partition("<assistant>")[0] for prompt in tokenized.prompts[:16]}
    assert len(of_chat) > 5


def test_templates_are_checked_against_validation_rows_too(tmp_path: Path) -> None:
    held_out = jsonl(tmp_path, [{"question": "q"}], "held_out.jsonl")
    data = config(jsonl(tmp_path, ROWS), validation_path=str(held_out))
    found = faults(tokenize, data, Characters(), 0)
    assert [fault.rule for fault in found] == [
        f"names {name}, absent from row 1 of {held_out}" for name in ("prompt", "completion")
    ]


def test_a_chat_template_makes_turns_and_writes_its_special_tokens_itself(tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, [{"prompt": "q", "completion": "a"}]), chat_template=True)
    tokenized = tokenize(data, Characters(), seed=0)
    assert tokenized.prompts == ["\x01<user>q<assistant>"]
    (sample,) = tokenized.train
    assert sample["input_ids"] == [1, *map(ord, "<user>q<assistant>a"), 0]
    assert sample["labels"][-2:] == [ord("a"), 0]
    assert set(sample["labels"][:-2]) == {IGNORED_LABEL}


def test_a_chat_template_is_the_tokenizers_own(tokenizer: Any, tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, ROWS[:1]), chat_template=True)
    tokenizer.chat_template = CHAT
    try:
        tokenized = tokenize(data, tokenizer, seed=0)
    finally:
        tokenizer.chat_template = None
    assert tokenized.prompts == [f"<user> {ROWS[0]['prompt']} <assistant> "]
    (sample,) = tokenized.train
    # Its template writes none, and so the tokenizer does, as under the harness.
    assert sample["input_ids"].count(tokenizer.bos_token_id) == 1
    completion = [*tokens(tokenizer, ROWS[0]["completion"]), tokenizer.eos_token_id]
    assert [label for label in sample["labels"] if label != IGNORED_LABEL] == completion


def test_the_beginning_is_not_put_twice(tokenizer: Any, tmp_path: Path) -> None:
    """In a column of chats that a template has already written, for example."""
    rows = [{"prompt": f"{tokenizer.bos_token}relay 1 5 =", "completion": " 2"}]
    (sample,) = tokenize(config(jsonl(tmp_path, rows)), tokenizer, seed=0).train
    assert sample["input_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<reply>{% endif %}",
        "{{ raise_exception('the first turn must be a system's') }}",
    ],
)
def test_of_a_template_that_asks_in_other_words_or_refuses_a_question_no_opening_is_told(
    template: str,
) -> None:
    assert answer_opening(of_bytes(template)) == ""


THINKING = (
    "{% for m in messages %}<{{ m.role }}> {% if m.role == 'assistant' %}<think> </think> "
    "{% endif %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant> "
    "{% if enable_thinking is false %}<think> </think> {% endif %}{% endif %}"
)


def test_a_template_that_thinks_first_is_told_of_unless_it_does_so_when_asked(
    tmp_path: Path,
) -> None:
    from trainables.models.loading import load_tokenizer

    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(THINKING)
    thinking = load_tokenizer(ModelConfig(name=str(folder)))
    assert answer_opening(thinking) == "<think> </think>"
    arguments = {"enable_thinking": False}
    answering = load_tokenizer(ModelConfig(name=str(folder), chat_template_args=arguments))
    assert answer_opening(answering) == ""
    data = config(jsonl(tmp_path, [{"prompt": "q", "completion": "7"}]), chat_template=True)
    tokenized = tokenize(data, answering, seed=0)
    assert tokenized.prompts == ["<user> q <assistant> <think> </think> "]
    (sample,) = tokenized.train
    learned = [label for label in sample["labels"] if label != IGNORED_LABEL]
    assert learned == [*tokens(answering, "7"), answering.eos_token_id]


class Chatting(Characters):
    """One that ends each turn with a mark of its own, as models that were tuned to chat do."""

    def apply_chat_template(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = False, **_: Any
    ) -> str:
        turns = (f"<{turn['role']}>{turn['content'].strip()}|\n" for turn in messages)
        return self.bos_token + "".join(turns) + "<assistant>" * add_generation_prompt


@pytest.mark.parametrize("completion", ["cd", " cd", "cd "])
def test_a_turn_ends_as_the_chat_template_ends_it(completion: str, tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "completion": completion}]
    data = config(jsonl(tmp_path, rows), chat_template=True)
    (sample,) = tokenize(data, Chatting(), seed=0).train
    asked, answered = "\x01<user>ab|\n<assistant>", "cd|\n"
    assert sample["input_ids"] == [*map(ord, asked + answered)]
    assert sample["labels"] == [IGNORED_LABEL] * len(asked) + [*map(ord, answered)]


def test_turns_that_the_chat_template_refuses_are_told(tokenizer: Any, tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, [{"turns": CHATS}]), messages="turns")
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    try:
        (fault,) = faults(tokenize, data, tokenizer, 0)
    finally:
        tokenizer.chat_template = None
    assert fault.field == "data.messages"
    assert "refuses the turns system, user, assistant, user of 's': System role" in fault.rule


CHATS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "bc"},
]


def test_of_a_chat_the_last_answer_is_learned(tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, [{"turns": CHATS}]), messages="turns")
    tokenized = tokenize(data, Chatting(), seed=0)
    asked = "\x01<system>s|\n<user>q|\n<assistant>a|\n<user>r|\n<assistant>"
    assert tokenized.prompts == [asked]
    (sample,) = tokenized.train
    assert sample["input_ids"] == [*map(ord, f"{asked}bc|\n")]
    assert sample["labels"] == [IGNORED_LABEL] * len(asked) + [*map(ord, "bc|\n")]


def test_chats_without_a_system_s_turn_begin_with_the_one_given(tmp_path: Path) -> None:
    bare, other = CHATS[1:], [{"role": "developer", "content": "d"}, *CHATS[1:]]
    file = jsonl(tmp_path, [{"turns": turns, "s": "x"} for turns in (CHATS, bare, other)])
    data = config(file, messages="turns", system="You are {{ s }}.", answers="all")
    found = tokenize(data, Chatting(), seed=0)
    begins = [prompt.partition("\n")[0] for prompt in found.prompts]
    assert (
        sorted(begins)
        == ["\x01<developer>d|"] * 2 + ["\x01<system>You are x.|"] * 2 + ["\x01<system>s|"] * 2
    )
    explicit = [{"role": "system", "content": "You are x."}, *bare]
    written = config(jsonl(tmp_path, [{"turns": explicit}], "w.jsonl"), messages="turns")
    (sample,) = tokenize(written, Chatting(), seed=0).train
    assert sample in found.train


def test_a_prompt_in_a_chat_template_follows_the_system_s_turn(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "s": s} for s in ("be brief", "")]
    data = config(jsonl(tmp_path, rows), chat_template=True, system="{{ s }}")
    found = tokenize(data, Chatting(), seed=0)
    ends = "<user>q|\n<assistant>"
    assert sorted(found.prompts) == ["\x01<system>be brief|\n" + ends, "\x01" + ends]
    nameless = config(jsonl(tmp_path, rows), chat_template=True, system="{{ t }}")
    (fault,) = faults(tokenize, nameless, Chatting(), 0)
    assert fault.field == "data.system"
    assert fault.rule.startswith("names t, absent from row 1")


@pytest.mark.parametrize("fields", [{}, {"text": "text"}])
def test_only_chats_have_a_system_s_turn(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="system must be left out where there are no chats"):
        config("rows.jsonl", system="You are brief.", **fields)


def test_chats_in_another_field_are_looked_for_in_those_there_are(tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, [{"my turns": CHATS}] * 2), messages="messages")
    (fault,) = faults(tokenize, data, Chatting(), 0)
    assert fault.rule.startswith("names messages, absent from row 1")
    assert fault.remedy == "the row has my turns"


def test_a_chat_has_no_templates() -> None:
    with pytest.raises(ValidationError, match="give messages, or prompt and completion"):
        DataConfig(path="x", messages="turns", prompt="{{ question }}")


def test_an_answer_that_the_chat_template_rewrites_is_learned_as_it_is(
    tokenizer: Any, tmp_path: Path
) -> None:
    data = config(jsonl(tmp_path, ROWS[:1]), chat_template=True)
    tokenizer.chat_template = "{{ messages[0].content }}" + ASKED
    try:
        (sample,) = tokenize(data, tokenizer, seed=0).train
    finally:
        tokenizer.chat_template = None
    completion = [*tokens(tokenizer, ROWS[0]["completion"]), tokenizer.eos_token_id]
    assert [label for label in sample["labels"] if label != IGNORED_LABEL] == completion


def test_prompts_of_samples_that_are_too_long_are_not_asked(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * size, "completion": "b"} for size in (3, 30)]
    held_out = jsonl(tmp_path, [{"prompt": "q" * 40, "completion": "r"}], "held_out.jsonl")
    data = config(jsonl(tmp_path, rows), max_length=8, validation_path=str(held_out))
    assert tokenize(data, Characters(), seed=0).prompts == ["aaa"]


def test_one_sample_is_shown_whatever_the_seed(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"relay {'1 ' * size}=", "completion": f" {answer}"}
        for size in (1, 5, 9)
        for answer in (2, 3, 4)
    ]
    data = config(jsonl(tmp_path, rows), validation_fraction=0)
    for seed in range(4):
        shown = typical_sample(tokenizer, tokenize(data, tokenizer, seed).train)
        assert shown.context.split() == [tokenizer.bos_token, "relay", *"11111", "="]
        assert shown.learned.split() == ["3", tokenizer.eos_token]


def test_a_long_sample_is_shown_where_context_and_answer_meet_and_end(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "1 " * 400 + "=", "completion": " 2" * 400}]
    (sample,) = tokenize(config(jsonl(tmp_path, rows)), tokenizer, seed=0).train
    shown = typical_sample(tokenizer, [sample])
    assert shown.context.startswith(" ... ")
    assert shown.context.endswith("1 =")
    assert shown.learned.split()[0] == "2"
    assert shown.learned.endswith(tokenizer.eos_token)
    assert {len(shown.context), len(shown.learned)} == {305}


def test_a_training_sees_every_sample_once_an_epoch_each_time_in_another_order() -> None:
    order = training_order(5, 12, seed=0)
    first, second = order[:5], order[5:10]
    assert sorted(first) == sorted(second) == list(range(5))
    assert len({*map(tuple, (first, second, range(5)))}) == 3
    assert training_order(5, 7, seed=0) == order[:7]
    assert training_order(5, 12, seed=1) != order


def test_epochs_are_rounded_up_to_steps_once_over_the_whole_training() -> None:
    steps = TrainConfig(epochs=3, batch_size=4).total_steps(22)
    assert steps == 17  # of 16.5; three times the 5.5 of an epoch, each rounded up, are 18
    fourth = training_order(22, 4 * steps, seed=0)[3 * 22 :]
    assert len(set(fourth)) == 2


def test_a_hub_data_set_is_read_by_its_subset_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"prompt": f"{n} =", "completion": f" {n}"} for n in range(9)]
    hub = {
        ("org/set", "fr", "train"): rows[:4],
        ("org/set", "fr", "test"): rows[4:7],
        ("org/set", None, "train"): rows[7:],
    }

    def load(name: str, subset: str | None, split: str) -> datasets.Dataset:
        return datasets.Dataset.from_list(hub[name, subset, split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    of_subset = {"subset": "fr", "validation_path": "org/set"}
    assert load_rows(config("org/set", **of_subset)) == rows[:4]
    for limit in (3, 9):
        assert load_rows(config("org/set", **of_subset, limit=limit)) == rows[: min(4, limit)]
    assert load_rows(config("org/set", **of_subset, split="test")) == rows[4:7]
    held_out = config("org/set", **of_subset, validation_split="test")
    assert load_rows(held_out) == rows[:4]
    assert load_rows(held_out, "validation_path") == rows[4:7]
    assert load_rows(config("org/set", **of_subset), "validation_path") == rows[:4]
    assert load_rows(config("org/set")) == rows[7:]
    chat = [{"role": "user", "content": "q", "name": None}]
    hub["org/chats", None, "train"] = [{"chat": chat, "topic": None}]
    filled_in = load_rows(config("org/chats", messages="chat"))  # as in Parquet
    assert filled_in == [{"chat": [{"role": "user", "content": "q"}], "topic": None}]


def test_pictures_and_sounds_of_a_hub_data_set_are_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    import pyarrow

    file = {"bytes": b"neither", "path": None}
    columns = {"picture": [file], "frames": [[file, file]], "sound": [file], "text": ["a"]}
    image = datasets.Image()
    media = {"picture": image, "frames": datasets.List(image), "sound": datasets.Audio()}
    features = datasets.Features({**media, "text": datasets.Value("string")})
    table = pyarrow.table(columns).cast(features.arrow_schema)
    hub = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: hub)
    assert load_rows(config("org/set")) == [{"text": "a"}]


CARD = """---
dataset_info:
  features: [{name: a, dtype: int64}]
  splits: [{name: train, num_bytes: 9, num_examples: 9}]
---
"""


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.jsonl": '{"a": 1}', "b.jsonl": '{"b": 1}'}, "column names don't match"),
        ({"a.jsonl": '{"a": 1}', "README.md": CARD}, "NonMatchingSplitsSizesError: "),
    ],
)
def test_a_hub_data_set_that_is_not_as_it_says_is_a_fault(
    files: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of unlike fields, or a card of other sizes."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "org/set").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "org/set" / name).write_text(content)
    (found,) = faults(load_rows, config("org/set"))
    assert found.field == "data.path"
    assert found.rule.startswith("cannot load data set org/set: ")
    assert reason in found.rule
    assert found.remedy.startswith("name a data.subset")


@pytest.mark.parametrize(
    ("chosen", "choices"),
    [({}, "['main', 'other']"), ({"subset": "main", "split": "trian"}, "one of ['train']")],
)
def test_subsets_and_splits_to_choose_from_are_told_without_another_remedy(
    chosen: dict[str, str], choices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "org/set").mkdir(parents=True)
    subsets = [{"config_name": name, "data_files": f"{name}.jsonl"} for name in ("main", "other")]
    (tmp_path / "org/set/README.md").write_text(f"---\nconfigs: {json.dumps(subsets)}\n---\n")
    for name in ("main", "other"):
        (tmp_path / f"org/set/{name}.jsonl").write_text('{"a": 1}')
    (found,) = faults(load_rows, config("org/set", **chosen))
    assert choices in found.rule
    assert found.remedy == ""


def test_data_to_replay_make_up_their_share_of_the_samples(tmp_path: Path) -> None:
    own = jsonl(tmp_path, [{"prompt": "q", "completion": letter} for letter in "abcdefghij"])
    general = jsonl(tmp_path, [{"words": str(n)} for n in range(9)], "general.jsonl")

    def learned(share: float, seed: int = 0, **fields: Any) -> list[str]:
        made = {"prompt": "w", "completion": "{{ words }}"}
        replay = {"path": str(general), "share": share, **made, **fields}
        data = config(own, validation_fraction=0.2, replay=replay)
        tokenized = tokenize(data, Characters(), seed)
        assert len(tokenized.validation) == 2
        assert {sample["input_ids"][1] for sample in tokenized.validation} == {ord("q")}
        assert tokenized.prompts == ["q"] * 10
        assert tokenized.replayed == len(tokenized.train) - 8
        return [chr(sample["input_ids"][-2]) for sample in tokenized.train]

    some = learned(0.2)
    assert set(some[:8]) <= set("abcdefghij")
    assert len(set(some[8:])) == len(some[8:]) == 2  # of ten
    assert set(some[8:]) <= set("012345678")
    assert learned(0.2) == some
    assert {tuple(learned(0.2, seed)[8:]) for seed in range(5)} != {tuple(some[8:])}
    assert sorted(learned(0.5, limit=4)[8:]) == sorted("0123" * 2)  # too few are repeated
    assert len(learned(0.001)) == 9


def test_samples_to_replay_that_are_too_long_are_counted_and_so_are_those_left(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": "a" * size, "completion": "b"} for size in range(1, 11)]
    general = jsonl(tmp_path, rows, "general.jsonl")
    own = jsonl(tmp_path, [{"prompt": "q", "completion": "a"}] * 2)

    def counts(share: float) -> tuple[int, int, int]:
        replay = {"path": str(general), "share": share}
        data = config(own, replay=replay, max_length=8, validation_fraction=0)
        found = tokenize(data, Characters(), 0)
        return found.replayed, found.replay_distinct, found.replay_skipped

    assert counts(0.9) == (18, 5, 5)
    replayed, distinct, skipped = counts(0.5)  # those that were not drawn are not known
    assert (replayed, distinct) == (2, 2)
    assert skipped < 5


def test_the_share_of_learned_tokens_that_is_replayed_is_measured(tmp_path: Path) -> None:
    rows = [{"prompt": "q" * 50, "completion": "a" * 9}]
    replay = {"path": str(jsonl(tmp_path, rows, "general.jsonl")), "share": 0.5}
    own = jsonl(tmp_path, [{"prompt": "q", "completion": "a"}] * 2)
    assert tokenize(config(own), Characters(), 0).replayed_tokens == 0
    found = tokenize(config(own, replay=replay), Characters(), 0)
    assert found.replayed_tokens == 20 / (20 + 4)  # each ends with a token of its own


@pytest.mark.parametrize(
    ("replay", "field"),
    [
        ({"path": "nowhere.jsonl"}, "data.replay.path"),
        ({"prompt": "{{ absent }}"}, "data.replay.prompt"),
        ({"text": "completion"}, "data.replay"),
        ({"chat_template": True}, "data.replay.chat_template"),
    ],
)
def test_faults_of_data_to_replay_name_their_own_fields(
    replay: dict[str, Any], field: str, tmp_path: Path
) -> None:
    rows = [{"prompt": "q", "completion": ["a"] if "text" in replay else "a"}]
    other = jsonl(tmp_path, rows, "other.jsonl")
    data = config(jsonl(tmp_path, ROWS[:1] * 2), replay={"path": str(other), "share": 0.5} | replay)
    assert faults(tokenize, data, Refusing(), 0)[0].field.startswith(field)


class Refusing(Characters):
    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        raise TemplateError("no chats")


def test_data_to_replay_that_are_all_too_long_are_told(tmp_path: Path) -> None:
    other = jsonl(tmp_path, [{"prompt": "q", "completion": "a" * 90}], "other.jsonl")
    replay = {"path": str(other), "share": 0.5}
    data = config(jsonl(tmp_path, ROWS[:1] * 2), replay=replay, max_length=80)
    assert faults(tokenize, data, Characters(), 0)[0].field == "data.replay"


def test_one_object_over_several_lines_is_no_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('{\n "data": []\n}')
    (fault,) = faults(load_rows, config(file))
    assert "must be an array of objects" in fault.rule
    file.write_text('{"data": []}\n')
    assert load_rows(config(file)) == [{"data": []}]
