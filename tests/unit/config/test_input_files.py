"""An edit of a file between two starts of a sweep is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import record_sweep
from faults import faults
from sweep_files import edited

from tune.config.input_files import digests, edited_meanwhile
from tune.config.same_sweep import check_same_inputs
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.folder.lock import SweepLock

FILES = {
    "model/config.json": "model.name",
    "tasks/mine.yaml": "eval.task_dirs.0",
    "tasks/scoring.py": "eval.task_dirs.0",
    "general.txt": "eval.general_text",
    "chat.jinja": "model.chat_template",
    "rows.jsonl": "data.path",
    "more.jsonl": "data.replay.path",
    "test.jsonl": "eval.ood.c.data_files.test",
}


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / "tasks/mine.yaml").write_text("task: c\nprocess_results: !function scoring.it\n")
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


def test_files_that_cannot_be_read_are_named_by_their_fields(
    config: SweepConfig, tmp_path: Path
) -> None:
    for name in ("general.txt", "rows.jsonl"):
        (tmp_path / name).unlink()
    assert [f.field for f in faults(digests, config)] == ["data.path", "eval.general_text"]


@pytest.mark.parametrize("file", FILES)
def test_an_edited_file_is_named_by_its_field(
    config: SweepConfig, tmp_path: Path, file: str
) -> None:
    recorded = digests(config)
    assert set(recorded) == set(FILES.values())
    check_same_inputs(recorded, digests(config))
    (tmp_path / file).write_text((tmp_path / file).read_text().swapcase())  # of the same size
    (fault,) = faults(check_same_inputs, recorded, digests(config))
    assert fault.field == FILES[file]
    assert "has changed" in fault.rule
    assert "--output-dir" in fault.remedy


def test_a_file_that_was_not_recorded_may_have_changed(config: SweepConfig) -> None:
    recorded = digests(config)
    del recorded["model.name"]
    (fault,) = faults(check_same_inputs, recorded, digests(config))
    assert fault.field == "model.name"
    assert "was not recorded" in fault.rule


def test_an_edit_while_trials_run_is_noticed(config: SweepConfig, tmp_path: Path) -> None:
    before = digests(config)
    (tmp_path / "rows.jsonl").write_text("edited")  # trials have their token ids
    assert edited_meanwhile(before, config) is None
    (tmp_path / "general.txt").write_text("edited")
    (tmp_path / "chat.jinja").unlink()
    message = edited_meanwhile(before, config)
    assert message is not None
    assert all(field in message for field in ("eval.general_text", "model.chat_template"))


def test_a_model_s_folder_may_hold_the_sweep_and_its_output(tmp_path: Path) -> None:
    """Else the sweep could not be resumed."""
    for name in ("rows.jsonl", "config.json", "model-1.safetensors"):
        (tmp_path / name).write_text("before")
    file = tmp_path / "sweep.yaml"
    file.write_text(edited(model__name="./", eval__task_dirs=["."]))
    folder = tmp_path / "sweeps" / "tiny"
    with SweepLock(folder):  # as at the first start
        recorded = digests(load_sweep(str(file), []))
        (folder / "trials" / "0000").mkdir(parents=True)
        (folder / "trials" / "0000" / "model.safetensors").write_text("trained")
    record_sweep(folder)
    (tmp_path / "run.log").write_text("the user's")
    config = load_sweep(str(file), [])
    check_same_inputs(recorded, digests(config))
    (tmp_path / "model-1.safetensors").write_text("edited")
    assert [fault.field for fault in faults(check_same_inputs, recorded, digests(config))] == [
        "model.name"
    ]
