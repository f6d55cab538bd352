"""optuna-dashboard, the real one, serves the study that a sweep leaves."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainables.config import TrialConfig
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import Measurement, TrialRecord, TrialStatus
from tune.config.sweep_config import SweepConfig
from tune.search.searcher import OptunaSearcher
from tune.search.trial_ids import TrialMaker

DASHBOARD = str(Path(sys.executable).with_name("optuna-dashboard"))
TIME_LIMIT = 60
GAIN, LOSS = "in_domain/acc_mean", "forgetting/mean"
ENDINGS = {3: TrialStatus.FAILED, 5: TrialStatus.STOPPED_EARLY, 7: TrialStatus.DIVERGED}
STATES = {3: "fail", 5: "pruned"}  # one that diverged counts as complete, with the worst values
TRIALS = 10


def sweep() -> SweepConfig:
    rates = {"low": 1e-5, "high": 1e-3}
    return SweepConfig.model_validate(
        {
            "name": "tiny",
            "model": {"name": "m"},
            "data": {"path": "d.jsonl"},
            "eval": {"in_domain": ["a"], "retention": ["b"]},
            "search": {
                "lora": {"rank": [2, 8, 32], "alpha_ratio": [1, 2], "learning_rate": rates},
                "full": {"learning_rate": rates},
            },
            "objectives": [{"metric": GAIN, "mode": "max"}, {"metric": LOSS, "mode": "min"}],
            "constraints": [f"{LOSS} <= 0.05"],
            "budget": {"trials": TRIALS},
        }
    )


def searched() -> OptunaSearcher:
    """A search that has seen every kind of ending."""
    config = sweep()
    make_trial = TrialMaker(config, "tiny-1", SweepFolder(Path("/sweeps/tiny")), {})
    searcher = OptunaSearcher(config, make_trial)
    for _ in range(TRIALS):
        suggestion = searcher.suggest("any")
        assert isinstance(suggestion, dict)
        trial = TrialConfig.model_validate(suggestion["trial"])
        effort = math.log10(trial.learning_rate * 1e5)
        metrics = {GAIN: 1 - math.exp(-effort), LOSS: 0.03 * effort}
        record = TrialRecord(
            config=trial,
            params=suggestion["params"],
            status=ENDINGS.get(trial.number, TrialStatus.COMPLETE),
            started=0.0,
            ended=1.0,
            last=Measurement(step=10, total_steps=10, metrics=metrics, time=0.0),
        )
        searcher.trial_ended(record)
    return searcher


@pytest.fixture
def get(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Asks a dashboard that shows the exported journal, by path; started as the README says."""
    searched().export(tmp_path / "study.journal")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [DASHBOARD, "study.journal", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return json.load(answer)

    deadline = time.monotonic() + TIME_LIMIT
    try:
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                get("/api/studies")
                break
            except OSError:
                assert time.monotonic() < deadline, "the dashboard does not answer"
                time.sleep(0.1)
        yield get
    finally:
        process.kill()
        process.communicate(timeout=TIME_LIMIT)


def test_every_trial_is_served_with_parameters_values_and_state(get: Callable[[str], Any]) -> None:
    (summary,) = get("/api/studies")["study_summaries"]
    assert summary["study_name"] == "tiny"
    study = get(f"/api/studies/{summary['study_id']}")
    assert study["name"] == "tiny"
    assert study["directions"] == ["maximize", "minimize"]
    assert study["objective_names"] == [GAIN, LOSS]

    wanted = searched().study.trials
    assert [trial["number"] for trial in study["trials"]] == list(range(TRIALS))
    for served, trial in zip(study["trials"], wanted, strict=True):
        assert served["state"].lower() == STATES.get(trial.number, "complete")
        if trial.values is None:
            assert not served.get("values")
        else:
            assert served["values"] == pytest.approx(trial.values)
        shown = {p["name"]: p["param_external_value"] for p in served["params"]}
        assert shown == {name: str(value) for name, value in trial.params.items()}
        attributes = {a["key"]: a["value"] for a in served["user_attrs"]}
        assert attributes == trial.user_attrs
    gains, losses = zip(*(t["values"] for t in study["trials"][:7] if t.get("values")), strict=True)
    assert study["trials"][7]["values"] == [min(gains), max(losses)]
