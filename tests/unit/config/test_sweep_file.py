"""From a sweep file to a configuration, or to faults that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_files import SWEEP, edited, faults, only_fault

from tune.config.choices import LogUniform
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import bundled_sweeps, load_sweep

Write = Any
MODULES = "search.lora.target_modules"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str = SWEEP, name: str = "tiny.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def load(file: Path, *overrides: str) -> SweepConfig:
    return load_sweep(str(file), list(overrides))


@pytest.mark.parametrize(
    ("bad", "instead", "line"),
    [
        ("rank: [4, 8]", "rank: [4, 0]", 10),
        ("in_domain: [a]", "in_domain: [{task: a, nmae: b}]", 6),
        ("metric: forgetting/mean", "metric: forgetting/maen", 15),
    ],
)
def test_a_fault_names_file_and_line(bad: str, instead: str, line: int, write: Write) -> None:
    file = write(SWEEP.replace(bad, instead, 1))
    assert str(only_fault(file)).endswith(f"({file}:{line})")


def test_all_faults_are_reported_at_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    file = write(edited(search__lora__rank="${NOPE}", train__step=3, seed=-1, model={}))
    assert {fault.field for fault in faults(file, "name.x=5", "train.steps=x", "b")} == {
        "--set",
        "search.lora.rank",
        "train.step",
        "train.steps",
        "seed",
        "model.name",
    }


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("name: a\nmodel: {name: b\n", "expected ',' or '}'", 3),
        ("data:\n  prompt: Question: what?\n", "mapping values are not allowed here", 2),
    ],
)
def test_bad_yaml_is_a_fault_with_its_line(
    text: str, problem: str, line: int, write: Write
) -> None:
    file = write(text)
    fault = only_fault(file)
    assert problem in fault.rule
    assert "in quotes" in fault.remedy
    assert fault.location == f"{file}:{line}"


@pytest.mark.parametrize("content", ["", "- a\n", "name: 0x_\n", "a: \0"])
def test_a_file_that_is_no_sweep_is_refused(content: str, write: Write) -> None:
    assert only_fault(write(content)).field == "SWEEP"


def test_times_and_dates_are_texts(write: Write) -> None:
    """In YAML, 1:30 is 90."""
    assert "'1:30'" in only_fault(write(f"{SWEEP}budget: {{hours: 1:30}}\n")).rule
    config = load(write(), "wandb.tags=[12:30, 2024-02-30]")
    assert config.wandb.tags == ("12:30", "2024-02-30")


def test_a_key_given_twice_is_refused_with_both_lines(write: Write) -> None:
    file = write(SWEEP + "train:\n  batch_size: 5\n")
    fault = only_fault(file)
    assert (fault.field, fault.location) == ("train", f"{file}:19")
    assert f"{file}:16" in fault.rule


def test_a_missing_file_names_the_nearest_sweep() -> None:
    assert only_fault(Path("quickstrat")).remedy == "did you mean quickstart?"


def test_variables_are_filled_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "7b")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOPE", raising=False)
    tags = ["${SIZE:-1b}", "a${EMPTY}b", "${EMPTY:-other}"]
    text = edited(model__name="org/${SIZE}", budget__trials="${NOPE:-3}", wandb={"tags": tags})
    config = load(write(text))
    assert config.model.name == "org/7b"
    assert config.budget.trials == 3
    assert config.wandb.tags == ("7b", "ab", "other")
    file = write(SWEEP.replace("rows.jsonl", "${NOPE}/a"))
    fault = only_fault(file)
    assert (fault.field, fault.location) == ("data.path", f"{file}:4")
    assert "NOPE" in fault.remedy


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=50", 50),
        ("search.lora.rank.1=64", (4, 64)),
        ("search.lora.learning_rate={low: 1e-5, high: 1}", LogUniform(low=1e-5, high=1)),
        ("search.full.learning_rate=2.5e-5", (2.5e-5,)),
        ("train.steps=", None),
        ("data.prompt='{{ a }} = '", "{{ a }} = "),
        ("resources.full.workers=2", 2),
        (f"{MODULES}=[[v, q]]", (("q", "v"),)),
    ],
)
def test_overrides_replace_values(override: str, value: Any, write: Write) -> None:
    found: Any = load(write(), override)
    for part in override.partition("=")[0].removesuffix(".1").split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("override", "fact"),
    [
        ("train.steps", "KEY=VALUE"),
        ("name.x=5", "name holds a value"),
        ("objectives.2.mode=min", "list of 2, it has no 2"),
        ("extends=quickstart", "cannot set extends"),
        ("data.prompt=[INST] {{ a }}", "no valid YAML"),
    ],
)
def test_an_override_that_cannot_be_applied_is_a_fault(
    override: str, fact: str, write: Write
) -> None:
    fault = only_fault(write(), override)
    assert fault.field == "--set"
    assert fact in fault.rule


def test_paths_are_relative_to_the_sweep_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the command runs elsewhere; else it would start another sweep."""
    folder = tmp_path / "folder"
    (folder / "base").mkdir(parents=True)
    (tmp_path / "here" / "gpt2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", "/home/user")
    text = edited(
        model__name="base",
        data__path="../rows.jsonl",
        data__validation_path="~/held_out.parquet",
        eval__task_dirs=["tasks", "package://tune/sweeps"],
        eval__ood=[{"task": "c", "data_files": {"test": "test.jsonl"}}, "d"],
    )
    file = write(text, "folder/tiny.yaml")
    config = load(Path("../folder/tiny.yaml"))
    assert config.model.name == str(folder / "base")
    assert config.data.path == str(tmp_path / "rows.jsonl")
    assert config.data.validation_path == "/home/user/held_out.parquet"
    assert config.eval.task_dirs == (str(folder / "tasks"), "package://tune/sweeps")
    assert config.eval.ood[0].data_files == {"test": str(folder / "test.jsonl")}
    assert load(file, "model.name=gpt2").model.name == str(tmp_path / "here" / "gpt2")


def test_a_deepspeed_file_becomes_part_of_the_configuration(write: Write, tmp_path: Path) -> None:
    """So its content is recorded, and other nodes need not see the file."""
    file = tmp_path / "zero.json"
    sweep = write(edited(deepspeed={"config_file": "zero.json"}))
    file.write_text('{"zero_optimization": {"stage": 1}}')
    assert load(sweep).deepspeed.config == {"zero_optimization": {"stage": 1}}
    assert "config_file" in only_fault(sweep, "deepspeed.config={}").field
    for content, fact in (("[1]", "got a list"), ("{", "no JSON")):
        file.write_text(content)
        fault = only_fault(sweep)
        assert fault.field == "deepspeed.config_file"
        assert fact in fault.rule


def test_a_sweep_extends_another(write: Write, tmp_path: Path) -> None:
    base = write(SWEEP, "below/base.yaml")
    full = "  full: {learning_rate: [1.0e-5]}\n"
    child = f"extends: below/base.yaml\nname: child\nsearch:\n  lora:\n    rank: [16]\n{full}"
    file = write(child)
    config = load(file)
    assert config.name == "child"
    lora = dict(config.search.choices("lora"))
    assert (lora["rank"], lora["alpha_ratio"]) == ((16,), (2.0,))
    assert config.search.recipes == ("lora", "full")
    assert config.data.path == str(tmp_path / "below/rows.jsonl")
    base.write_text(SWEEP.replace("batch_size: 16", "batch_size: x"))
    file.write_text(child.replace("rank: [16]", "rank: 0"))
    assert {fault.field: fault.location for fault in faults(file)} == {
        "train.batch_size": f"{base}:17",
        "search.lora.rank.0": f"{file}:5",
    }


def test_extending_in_a_circle_is_a_fault(write: Write) -> None:
    write("extends: two.yaml\n", "one.yaml")
    assert "circle" in only_fault(write("extends: one.yaml\n", "two.yaml")).rule


@pytest.mark.parametrize("name", bundled_sweeps())
def test_every_bundled_sweep_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QA_DIR", "/data/qa")
    config = load_sweep(name, [])
    assert config.name == name
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config
