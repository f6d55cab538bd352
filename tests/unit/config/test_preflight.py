"""Files and settings are checked before anything runs, without a model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import LOSS, base_record, sweep_config
from faults import faults

from trainables.storage.locations import resolve
from tune.config.preflight import check_files
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.config.sweep_metrics import check_metrics
from tune.config.training_warnings import held_out_warnings, item_warnings, training_warnings

EMBEDDED = "package://trainables/embedded/model"
BASE = base_record(metrics={"in_domain/a/acc": 0.5, LOSS: 0.5})
VALIDATION = "validation/loss"


def objective(metric: str, **sections: Any) -> SweepConfig:
    return sweep_config(objectives=[{"metric": metric, "mode": "min"}], **sections)


def test_metrics_that_the_base_lacks_are_refused() -> None:
    check_metrics(objective("in_domain/a/acc"), BASE)
    (fault,) = faults(check_metrics, objective("in_domain/a/f1"), BASE)
    assert fault.field == "objectives.0.metric"
    assert "in_domain/a/f1" in fault.rule
    assert "in_domain/a/acc" in fault.remedy


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
        ({"train": {"steps": 9}}, None),
        (
            {"data": {"path": "a", "validation_path": "b", "validation_fraction": 0.1}},
            "data.validation_fraction is 0.1",
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


def test_nothing_is_read_from_an_object_store(tmp_path: Path) -> None:
    fields = ["model.name", "data.path", "data.validation_path", "eval.general_text"]
    config = load_sweep("quickstart", [f"{field}=s3://bucket/{field}" for field in fields])
    found = faults(check_files, config, tmp_path)
    assert [fault.field for fault in found] == fields
    assert all(f"s3://bucket/{fault.field}" in fault.rule for fault in found)


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(resolve(f"{EMBEDDED}/config.json"), folder)
    config = load_sweep("quickstart", [f"model.name={folder}"])
    (folder / "pytorch_model.bin.index.json").touch()
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "model.name"
    assert "no weights" in fault.rule


def test_4_bits_need_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_sweep("quickstart", ["model.load_in_4bit=true", "search.full=null"])
    check_files(config, tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "model.load_in_4bit"
    assert "bitsandbytes" in fault.rule


def test_target_modules_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    modules = "search.lora.target_modules=[[{}, v_proj], [mlp.up_proj, lm_head]]"
    check_files(load_sweep("quickstart", [modules.format("q_proj")]), tmp_path)
    config = load_sweep("quickstart", [modules.format("q_prj")])
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "search.lora.target_modules"
    assert "q_prj" in fault.rule
    assert "q_proj, k_proj, v_proj" in fault.remedy
