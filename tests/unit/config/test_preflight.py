"""Files and settings are checked before anything runs, without a model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import GAIN, LOSS, base_record, sweep_config
from faults import faults

from trainables.storage.locations import is_local, resolve
from tune.config.preflight import check_files
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.config.sweep_metrics import check_metrics
from tune.config.training_warnings import held_out_warnings, item_warnings, training_warnings

EMBEDDED = "package://trainables/embedded/model"
TOO_LONG = "/" + "x" * 300  # the system refuses to look at such a path
BASE = base_record(metrics={"in_domain/a/acc": 0.5, LOSS: 0.5})
VALIDATION = "validation/loss"


def objective(metric: str, **sections: Any) -> SweepConfig:
    return sweep_config(objectives=[{"metric": metric, "mode": "min"}], **sections)


@pytest.mark.parametrize("metric", ["in_domain/a/acc", "forgetting/mean", "train/loss"])
def test_metrics_of_the_base_and_of_training_are_logged(metric: str) -> None:
    check_metrics(objective(metric), BASE)


@pytest.mark.parametrize("metric", ["in_domain/a/f1", "retention/ratio_mean", "forgetting/b"])
def test_metrics_that_the_base_lacks_are_refused(metric: str) -> None:
    """A task at chance has no retention ratio, which only the base's evaluation shows."""
    (fault,) = faults(check_metrics, objective(metric), BASE)
    assert (fault.field, fault.rule) == ("objectives.0.metric", f"nothing logs {metric}")
    assert "in_domain/a/acc" in fault.remedy


def test_metrics_of_early_stopping_must_be_logged() -> None:
    """Else no trial would be stopped, without a message."""
    config = sweep_config(early_stopping={"metrics": {"in_domain/a/acc_nrom": 1}})
    base = base_record(metrics={"in_domain/a/acc": 0.5, GAIN: 0.5, LOSS: 0.5})
    (fault,) = faults(check_metrics, config, base)
    assert fault.field == "early_stopping.metrics"
    assert "acc_nrom" in fault.rule


def test_a_validation_loss_needs_held_out_rows() -> None:
    check_metrics(objective(VALIDATION), base_record(validation_samples=1))
    (fault,) = faults(check_metrics, objective(VALIDATION), base_record(validation_samples=0))
    assert VALIDATION in fault.rule


def test_batches_larger_than_the_data_are_warned_about() -> None:
    lora = {"rank": 8, "alpha": 8, "learning_rate": 1e-3, "batch_size": [8, 16, 32]}
    config = sweep_config(search={"lora": lora, "full": {"learning_rate": 1e-5}})
    assert [*training_warnings(config, 32)] == []
    of_lora, of_full = training_warnings(config, 12)
    assert of_lora.startswith("search.lora.batch_size is 16 and 32")
    assert of_full.startswith("train.batch_size is 16")
    assert "12 samples" in of_full


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"train": {"epochs": 3, "steps": 9}}, "train.epochs is 3.0"),
        ({"train": {"epochs": 3, "steps": None}}, None),
        ({"train": {"steps": 9}}, None),
        (
            {"data": {"path": "a", "validation_path": "b", "validation_fraction": 0.1}},
            "data.validation_fraction is 0.1",
        ),
        ({"data": {"path": "a", "validation_path": "b"}}, None),
        (
            {"deepspeed": {"config": {"zero_optimization": {"stage": 2}}, "zero_stage": 3}},
            "deepspeed.zero_stage is 3",
        ),
    ],
)
def test_a_key_without_effect_is_warned_about(sections: dict[str, Any], field: str | None) -> None:
    lines = [*training_warnings(sweep_config(**sections), None)]
    assert [line.split(",")[0] for line in lines] == ([field] if field else [])


@pytest.mark.parametrize(
    ("ranks", "trials", "items", "needed"),
    [
        ([4, 8, 16], 12, [200], 312),  # ceil(z² / 0.02), z of 1 - 0.05 / 2 / 4
        ([4, 8, 16], 12, [312], None),
        ([4, 8, 16], 12, [300, 100], 624),  # each item of the second task weighs 3 times as much
        ([4, 8, 16], 11, [200], None),  # too few trials of each rank in any case
        ([4, 8], 12, [200], None),
        ([8, 16, 32, 64, 128], 20, [200], 374),
    ],
)
def test_too_few_items_to_compare_ranks_are_warned_about(
    ranks: list[int], trials: int, items: list[int], needed: int | None
) -> None:
    lora = {"rank": ranks, "alpha_ratio": 2, "learning_rate": 1e-4}
    task = {"metric": "acc", "filter": "none", "value": 0.5, "stderr": None, "chance": 0.0}
    scores = {
        f"task_{i}": {"role": "in_domain", "choices": None, "items": n, **task}
        for i, n in enumerate(items)
    }
    lines = [
        *item_warnings(sweep_config(search={"lora": lora}), base_record(scores=scores), trials)
    ]
    assert len(lines) == (needed is not None)
    assert all(f"at least {needed} are needed" in line for line in lines)


def test_a_validation_loss_on_few_samples_is_warned_about() -> None:
    few, enough = (base_record(validation_samples=count) for count in (29, 30))
    (line,) = held_out_warnings(objective(VALIDATION), few)
    assert line.startswith("objectives.0.metric: validation/loss")
    assert "29 held-out samples" in line
    assert "data.validation_fraction" in line
    assert [*held_out_warnings(objective(VALIDATION), enough)] == []
    assert [*held_out_warnings(objective(LOSS), few)] == []
    file = {"path": "rows.jsonl", "validation_path": "held_out.jsonl"}
    (line,) = held_out_warnings(objective(VALIDATION, data=file), few)
    assert "data.validation_fraction" not in line


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.path", f"{TOO_LONG}.jsonl"),
        ("model.name", TOO_LONG),
        ("eval.task_dirs.0", TOO_LONG),
        (
            "eval.in_domain.b.data_files.test",
            f"[{{task: list_max, name: b, data_files: {{test: {TOO_LONG}}}}}]",
        ),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_named(field: str, value: str, tmp_path: Path) -> None:
    key = "eval.in_domain" if "data_files" in field else field
    (fault,) = faults(check_files, load_sweep("quickstart", [f"{key}={value}"]), tmp_path)
    assert fault.field == field
    assert "File name too long" in fault.rule


def test_a_home_that_does_not_exist_is_no_such_file(tmp_path: Path) -> None:
    config = load_sweep("quickstart", ["data.path=~of-nobody/x.jsonl"])
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "data.path"
    assert "no such file" in fault.rule
    (fault,) = faults(load_sweep, "~of-nobody/x", [])
    assert fault.field == "SWEEP"


def test_nothing_is_read_from_an_object_store(tmp_path: Path) -> None:
    fields = ["model.name", "data.path", "data.validation_path", "eval.general_text"]
    config = load_sweep("quickstart", [f"{field}=s3://bucket/{field}" for field in fields])
    found = faults(check_files, config, tmp_path)
    assert [fault.field for fault in found] == fields
    assert all(f"s3://bucket/{fault.field}" in fault.rule for fault in found)


def test_a_malformed_template_is_reported_once_for_all_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "completion": "c"}\n')
    held_out = shutil.copy(rows, tmp_path / "held_out.jsonl")
    data = {"path": str(rows), "validation_path": str(held_out), "prompt": "{{ prompt"}
    found = faults(check_files, sweep_config(data=data), tmp_path)
    assert [f.field for f in found if "template" in f.rule] == ["data.prompt"]


@pytest.mark.parametrize(
    ("location", "local"),
    [
        ("package://p/f", True),
        ("/a/b", True),
        ("./b", True),
        ("~/b", True),
        ("rows.jsonl.gz", True),
        ("model.gguf", True),
        ("gpt2", False),
        ("org/model", False),
    ],
)
def test_local_paths_are_told_from_names_on_a_hub(location: str, local: bool) -> None:
    assert is_local(location) is local


def test_files_of_a_package_are_found_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "outer_of_a_test" / "middle" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("raise SystemExit('the code of middle ran')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package://outer_of_a_test.middle.inner/file") == str(inner / "file")


@pytest.mark.parametrize("package", ["no_such_package/a", "", "/a", "typing/a"])
def test_a_package_that_is_not_installed_is_named(package: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="is not installed"):
        resolve(f"package://{package}")


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(resolve(f"{EMBEDDED}/config.json"), folder)
    config = load_sweep("quickstart", [f"model.name={folder}"])
    (folder / "pytorch_model.bin.index.json").touch()
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "model.name"
    assert "no weights" in fault.rule
    (folder / "parts").mkdir()
    (folder / "parts/model-1.safetensors").touch()
    check_files(config, tmp_path)


def test_4_bits_need_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_sweep("quickstart", ["model.load_in_4bit=true", "search.full=null"])
    check_files(config, tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "model.load_in_4bit"
    assert "bitsandbytes" in fault.rule


@pytest.mark.parametrize(
    ("name", "modules", "missing"),
    [
        (EMBEDDED, [["q_proj", "mlp.up_proj", "lm_head"]], None),
        (EMBEDDED, [["q_prj", "v_proj"], ["layers.1.up"]], "layers.1.up, q_prj"),
        ("on-a-hub/model", [["c_attn"]], None),  # which is not known here
    ],
)
def test_target_modules_that_the_model_lacks_are_refused(
    name: str, modules: list[list[str]], missing: str | None, tmp_path: Path
) -> None:
    settings = [f"model.name={name}", f"search.lora.target_modules={modules}"]
    config = load_sweep("quickstart", settings)
    if missing is None:
        check_files(config, tmp_path)
        return
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "search.lora.target_modules"
    assert missing in fault.rule
    assert "q_proj, k_proj, v_proj" in fault.remedy
