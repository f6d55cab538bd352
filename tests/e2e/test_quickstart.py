"""The main job: one command, and the trade-off is there."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, Command
from scipy.stats import spearmanr

from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.config import TrialConfig
from trainables.data.tokenized import trial_inputs
from trainables.evaluation.drift import token_nll
from trainables.metric_keys import (
    FORGETTING_MEAN,
    KL_BASE_TO_TUNED,
    VALIDATION_LOSS,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus

pytestmark = pytest.mark.timeout(600)
Quickstart = tuple[Path, Command]


@pytest.fixture(scope="module")
def records(quickstart: Quickstart) -> list[TrialRecord]:
    return Ledger(quickstart[0]).trials()


def strength(config: TrialConfig) -> float:
    """Learning rate x scale, what a LoRA update grows with."""
    assert config.step_size is not None
    return config.step_size


def value(record: TrialRecord, key: str) -> float:
    found = record.metric(key)
    assert found is not None, f"trial {record.number} has no {key}"
    return found


def test_every_trial_completes_and_three_are_full_fine_tuning(records: list[TrialRecord]) -> None:
    assert len(records) >= 12
    assert {record.status for record in records} == {TrialStatus.COMPLETE}
    assert sum(record.config.recipe == "full" for record in records) >= 3


def test_good_trial_learns_the_target(records: list[TrialRecord]) -> None:
    assert max(value(record, "in_domain/acc_mean") for record in records) >= 0.8


def test_forgetting_grows_with_learning_rate_times_scale(records: list[TrialRecord]) -> None:
    lora = [record for record in records if record.config.recipe == "lora"]
    strengths = [strength(record.config) for record in lora]
    for key in (FORGETTING_MEAN, KL_BASE_TO_TUNED):
        trend = spearmanr(strengths, [value(record, key) for record in lora])
        assert trend.statistic > 0.5, key
    gentlest = min(lora, key=lambda record: strength(record.config))
    full = [record for record in records if record.config.recipe == "full"]
    hardest = max(full, key=lambda record: record.config.learning_rate)
    assert value(hardest, "forgetting/mean") > value(gentlest, "forgetting/mean") + 0.1


def test_the_front_holds_points_of_lower_strengths_which_forget_less(
    quickstart: Quickstart, records: list[TrialRecord]
) -> None:
    assert all(len(record.curve) == 3 for record in records)
    [sweep] = open_sweeps([quickstart[0]])
    assert any(point.strength < 1 for point in Results([sweep]).front)
    wild = max(records, key=lambda record: value(record, FORGETTING_MEAN))
    lost = [value(point, FORGETTING_MEAN) for point in wild.curve]
    assert lost[0] < lost[-1] - 0.1
    rows = [*csv.DictReader((quickstart[0] / "results.csv").open())]
    assert len(rows) == 3 * len(records)


def test_offline_runs_hold_what_the_ledger_holds(
    quickstart: Quickstart, records: list[TrialRecord]
) -> None:
    folder, _ = quickstart
    record = records[0]
    (file,) = (folder / "wandb").glob(f"offline-run-*{record.config.trial_id}/*.wandb")
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    entries = [json.loads(line) for line in shown.stdout.splitlines()]
    logged = [
        {key: value for key, value in entry["history"]["item"].items() if key[0] != "_"}
        for entry in entries
        if entry["type"] == "history"
    ]
    history = [m.metrics for m in Ledger(folder).measurements(record.number)]
    assert logged[: len(history)] == history
    curve = [
        (point["strength/value"], point[f"strength/{FORGETTING_MEAN}"])
        for point in logged[len(history) :]
    ]
    assert curve == [(view.strength, value(view, FORGETTING_MEAN)) for view in record.curve]


def test_summary_names_the_front_the_winner_and_what_to_type_next(quickstart: Quickstart) -> None:
    output = quickstart[1].output
    for part in ("Pareto front", "Recommended: trial", "results.csv", "--num-trials"):
        assert part in output
    assert quickstart[1].errors == ""


def test_report_takes_the_trial_that_the_summary_takes(
    quickstart: Quickstart, tmp_path: Path
) -> None:
    folder, command = quickstart
    file = tmp_path / "report.json"
    report = [sys.executable, "-m", "analysis", "report", str(folder), "--to", str(file)]
    subprocess.run(report, cwd=PROJECT, check=True, timeout=120)
    found = json.loads(file.read_text())
    (number,) = (t["number"] for t in found["trials"] if t["trial_id"] == found["recommended"])
    assert f"Recommended: trial {number} (" in command.output


def test_saved_adapter_and_model_load_as_they_are(records: list[TrialRecord]) -> None:
    """And are what was measured."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    loaders = {"lora": AutoPeftModelForCausalLM, "full": AutoModelForCausalLM}
    for recipe, loader in loaders.items():
        record = next(r for r in records if r.config.recipe == recipe)
        assert record.weights_dir is not None
        _, tokenized = trial_inputs(record.config)
        loss = token_nll(loader.from_pretrained(record.weights_dir), tokenized.validation, 16)
        assert loss == pytest.approx(value(record, VALIDATION_LOSS), rel=1e-3)
        assert not list(Path(record.weights_dir).glob("*.bin"))
