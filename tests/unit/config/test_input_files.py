"""An edit of a file between two starts of a sweep is told, before trials are compared across it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from builders import record_sweep, sweep_config
from faults import faults
from sweep_files import edited

from trainables.config import ModelConfig
from trainables.errors import UserError
from trainables.models.loading import changed
from tune.config.input_files import digests, edited_meanwhile
from tune.config.same_sweep import check_same_inputs
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.folder.lock import SweepLock
from tune.search.earlier_trials import earlier_trials

TASK_FILES = {
    "mine.yaml": "task: c\ninclude: common\nprocess_results: !function scoring.results\n"
    "dataset_kwargs: {data_files: {test: part-*.csv}}\n",
    "common": "output_type: multiple_choice\nmetric_list: !function metrics.listed\n",
    "metrics.py": "listed = []\n",
    "scoring.py": "from .helpers import clean\n",
    "helpers.py": "KNOWN = open('known.txt')\n",
    "known.txt": "words",
    "part-1.csv": "a,b",
    "other.py": "nothing of the task's",
    "train.csv": "nothing of the task's",
}


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    for name in (
        "model/config.json",
        "general.txt",
        "test.jsonl",
        "rows.jsonl",
        "chat.jinja",
        "more.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / "tasks").mkdir()
    for name, text in TASK_FILES.items():
        (tmp_path / "tasks" / name).write_text(text)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        edited(
            model__name="./model",
            model__chat_template="chat.jinja",
            data__replay={"path": "more.jsonl", "share": 0.5},
            eval__task_dirs=["tasks", "package://tune/sweeps"],
            eval__general_text="general.txt",
            eval__ood=[{"task": "c", "data_files": {"test": "test.jsonl"}}],
        )
    )
    return load_sweep(str(sweep), [])


def test_files_that_cannot_be_read_are_told_by_their_fields(
    config: SweepConfig, tmp_path: Path
) -> None:
    for name in ("general.txt", "rows.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError) as caught:
        digests(config)
    assert [fault.field for fault in caught.value.faults] == ["data.path", "eval.general_text"]
    assert all(fault.rule.startswith("cannot be read: ") for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("model/config.json", "model.name"),
        ("tasks/mine.yaml", "eval.task_dirs.0"),
        ("tasks/scoring.py", "eval.task_dirs.0"),
        ("tasks/helpers.py", "eval.task_dirs.0"),
        ("tasks/known.txt", "eval.task_dirs.0"),
        ("tasks/common", "eval.task_dirs.0"),
        ("tasks/metrics.py", "eval.task_dirs.0"),
        ("tasks/part-1.csv", "eval.task_dirs.0"),
        ("general.txt", "eval.general_text"),
        ("chat.jinja", "model.chat_template"),
        ("rows.jsonl", "data.path"),
        ("more.jsonl", "data.replay.path"),
        ("test.jsonl", "eval.ood.c.data_files.test"),
    ],
)
def test_an_edited_file_is_told_by_its_field(
    config: SweepConfig, tmp_path: Path, file: str, field: str
) -> None:
    recorded = digests(config)
    check_same_inputs(recorded, digests(config))
    (tmp_path / file).write_text((tmp_path / file).read_text().swapcase())
    (fault,) = faults(check_same_inputs, recorded, digests(config))
    assert fault.field == field


def test_an_edit_while_trials_read_is_told(config: SweepConfig, tmp_path: Path) -> None:
    before = digests(config)
    (tmp_path / "rows.jsonl").write_text("edited")  # of which trials have the token ids
    assert edited_meanwhile(before, config) is None
    (tmp_path / "general.txt").write_text("edited")
    (tmp_path / "model/config.json").write_text("edited")
    told = edited_meanwhile(before, config)
    assert told is not None
    assert told.startswith("model.name, eval.general_text changed while trials ran: ")
    (tmp_path / "chat.jinja").unlink()
    told = edited_meanwhile(before, config)
    assert told is not None
    fields = "model.name, eval.general_text, model.chat_template"
    assert told.startswith(f"{fields} changed while trials ran: ")


def test_a_model_s_digest_is_that_of_earlier_versions(config: SweepConfig) -> None:
    """Of relative name, size and content; or sweeps that they began could not go on."""
    expected = hashlib.sha256(b"config.json:6\nbefore").hexdigest()
    assert digests(config)["model.name"] == expected


def test_a_file_of_which_nothing_was_recorded_is_not_said_to_have_changed(
    config: SweepConfig,
) -> None:
    """By an older version, or as a hub's name then was no folder here."""
    recorded = digests(config)
    del recorded["model.name"]
    with pytest.raises(UserError) as caught:
        check_same_inputs(recorded, digests(config))
    assert str(caught.value) == (
        "model.name: nothing was recorded of it at this sweep's first start, so it may have "
        "changed; give the sweep another name or --output-dir"
    )


def test_a_package_s_model_that_was_upgraded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless an earlier version began the sweep, which recorded none."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier/__init__.py").touch()
    (tmp_path / "carrier/small.gguf").write_text("before")
    config = sweep_config(model=ModelConfig(name="package://carrier"))
    ledger = record_sweep(tmp_path / "tiny", model=config.model)
    recorded = digests(config)
    ledger.write_sweep(ledger.sweep().model_copy(update={"inputs": recorded}))
    (tmp_path / "carrier/__pycache__").mkdir()
    (tmp_path / "carrier/__pycache__/any.pyc").touch()
    assert changed(config.model, recorded) is None
    (tmp_path / "carrier/small.gguf").write_text("upgraded")
    assert changed(config.model, recorded) is not None
    (fault,) = faults(earlier_trials, config, ledger, digests(config))
    assert fault.field == "model.name"
    assert fault.rule == "has changed since this sweep's first start"
    del recorded["model.name"]
    ledger.write_sweep(ledger.sweep().model_copy(update={"inputs": recorded}))
    assert earlier_trials(config, ledger, digests(config)).own == []


def test_a_renamed_file_of_a_folder_is_an_edit(config: SweepConfig, tmp_path: Path) -> None:
    recorded = digests(config)
    (tmp_path / "model/config.json").rename(tmp_path / "model/other.json")
    with pytest.raises(UserError, match=r"model\.name"):
        check_same_inputs(recorded, digests(config))


def test_what_running_a_task_leaves_in_its_folder_is_no_edit(
    config: SweepConfig, tmp_path: Path
) -> None:
    recorded = digests(config)
    assert sorted(recorded) == [
        "data.path",
        "data.replay.path",
        "eval.general_text",
        "eval.ood.c.data_files.test",
        "eval.task_dirs.0",
        "model.chat_template",
        "model.name",
    ]
    (tmp_path / "tasks/__pycache__").mkdir()
    (tmp_path / "tasks/__pycache__/helpers.cpython-311.pyc").write_text("compiled")
    (tmp_path / "tasks/.mine.yaml.swp").write_text("open in an editor")
    check_same_inputs(recorded, digests(config))


def test_tasks_may_stand_beside_the_sweep_s_file_and_all_that_it_writes(tmp_path: Path) -> None:
    """It could never be started twice: its lock alone is another file every few seconds."""
    sweep = tmp_path / "sweep.yaml"
    (tmp_path / "rows.jsonl").write_text("rows")
    for name, text in TASK_FILES.items():
        (tmp_path / name).write_text(text)
    sweep.write_text(edited(eval__task_dirs=["."]))
    recorded = digests(load_sweep(str(sweep), []))
    sweep.write_text(edited(eval__task_dirs=["."], budget__trials=99))
    written = tmp_path / "sweeps" / "tiny"
    (written / "base").mkdir(parents=True)
    (written / "sweep.json").write_text("{}")
    (written / "base" / "part-1.csv").write_text("named like a task's")
    for name in ("other.py", "train.csv", "notes.md"):
        (tmp_path / name).write_text("edited")
    check_same_inputs(recorded, digests(load_sweep(str(sweep), [])))
    (tmp_path / "scoring.py").write_text("edited")
    with pytest.raises(UserError, match=r"eval\.task_dirs\.0"):
        check_same_inputs(recorded, digests(load_sweep(str(sweep), [])))


def test_a_model_s_folder_may_hold_the_sweep_s_file_and_all_that_is_made_of_it(
    tmp_path: Path,
) -> None:
    """Else the sweep could not be resumed, nor its winner be merged into `model.name: ./`."""
    weights, file = tmp_path / "model-1.safetensors", tmp_path / "sweep.yaml"
    for text in ("rows.jsonl", "config.json", weights.name, "code/layers.py"):
        (tmp_path / text).parent.mkdir(exist_ok=True)
        (tmp_path / text).write_text("before")
    file.write_text(edited(model__name="./"))
    model = tmp_path / "sweeps" / "tiny" / "trials" / "0000" / "weights"
    with SweepLock(model.parents[2]):  # as at the first start
        recorded = digests(load_sweep(str(file), []))
        model.mkdir(parents=True)
        (model / weights.name).write_text("trained")
    record_sweep(model.parents[2])
    for made in ("winner/adapter_config.json", "merged/config.json", "figures/ranks.pdf"):
        (tmp_path / made).parent.mkdir()
        (tmp_path / made).write_text("made of it")
        (tmp_path / made).with_name(weights.name).write_text("made of it")
    (tmp_path / "figures" / weights.name).unlink()
    file.write_text(edited(model__name="./", budget__trials=99))
    for name in ("run.log", "nohup.out", "more.jsonl", "trials.csv"):
        (tmp_path / name).write_text("of the user's")
    config = load_sweep(str(file), [])
    check_same_inputs(recorded, digests(config))
    assert changed(config.model, recorded) is None
    for edit in (weights, tmp_path / "code" / "layers.py"):
        edit.write_text("edited")
        with pytest.raises(UserError, match=r"model\.name"):
            check_same_inputs(recorded, digests(config))
        edit.write_text("before")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("rows.jsonl", "data.path"),
        ("test.jsonl", "eval.ood.c.data_files.test"),
        ("tasks/part-1.csv", "eval.task_dirs.0"),
        ("general.txt", "eval.general_text"),
    ],
)
def test_an_edit_amid_a_large_file_that_leaves_its_size_is_told(
    config: SweepConfig, tmp_path: Path, name: str, field: str
) -> None:
    rows = tmp_path / name
    rows.write_bytes(b"a" * (5 << 20))
    recorded = digests(config)
    with rows.open("r+b") as file:
        file.seek((3 << 19) + 5)
        file.write(b"b")
    with pytest.raises(UserError, match=re.escape(field)):
        check_same_inputs(recorded, digests(config))
