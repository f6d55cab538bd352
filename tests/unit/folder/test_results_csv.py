"""The table of results beside the sweep."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from builders import OOD, SWEEP_ID, adapter, trial

from trainables import metric_keys
from trainables.records.schema import TrialStatus
from tune.folder.tables import write_results_csv

if TYPE_CHECKING:
    from pathlib import Path


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_csv_holds_every_trial_and_reads_back_equal(tmp_path):
    metrics = {"zebra": 1.0, "forgetting/b": 0.1 + 0.2, OOD: 1 / 3, metric_keys.TRAIN_LOSS: 1e-17}
    modules = ("q", "v")
    lora = adapter(rank=8, alpha=4.0, target_modules=modules, dropout=0.1, rslora=True)
    records = [
        trial(1, None, TrialStatus.FAILED, reason='ValueError: "a", b\nand more', ended=None),
        trial(
            0,
            metrics,
            best={OOD: 0.5, metric_keys.TRAIN_LOSS: 0.25},
            method=lora,
            weights_dir="w/é",
            seconds=60.5,
        ),
        trial(2, {OOD: 0.25}, method="full"),
    ]
    file = tmp_path / "new" / "results.csv"
    write_results_csv(file, records)
    first, second, third = read(file)
    assert list(first)[-6:] == [
        metric_keys.TRAIN_LOSS,
        OOD,
        "forgetting/b",
        "zebra",
        f"best/{metric_keys.TRAIN_LOSS}",
        f"best/{OOD}",
    ]
    assert {key: float(first[key]) for key in metrics} == metrics
    assert float(first[f"best/{OOD}"]) == 0.5
    assert first["trial_id"] == f"{SWEEP_ID}-0000"
    assert (first["lora/rank"], float(first["lora/alpha"])) == ("8", 4.0)
    assert float(first["lora/scaling"]) == 4.0 / 8**0.5
    assert (first["lora/target_modules"], first["lora/dropout"]) == ("q v", "0.1")
    assert first["lora/rslora"] == "True"
    assert (first["batch_size"], first["learning_rate"]) == ("16", "0.00032")
    assert (first["status"], first["seconds"], first["weights_dir"]) == ("COMPLETE", "60.5", "w/é")
    assert (second["status"], second["seconds"], second[OOD]) == ("FAILED", "", "")
    assert second["reason"] == 'ValueError: "a", b\nand more'
    assert (third["method"], third["lora/rank"], third["lora/target_modules"]) == ("full", "", "")
