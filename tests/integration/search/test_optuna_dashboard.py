"""optuna-dashboard serves the study that a sweep leaves."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import GAIN, LOSS, scores, sweep_config, trial

from trainables.records.schema import TrialRecord, TrialStatus
from tune.search.searcher import OptunaSearcher

DASHBOARD = str(Path(sys.executable).with_name("optuna-dashboard"))
TIME_LIMIT = 60
ENDINGS = {3: TrialStatus.FAILED, 5: TrialStatus.STOPPED_EARLY, 7: TrialStatus.DIVERGED}
STATES = {3: "fail", 5: "pruned"}  # one that diverged counts as complete, with the worst values
TRIALS = 10


def searched() -> OptunaSearcher:
    """A search that has seen every kind of ending."""
    return OptunaSearcher(
        sweep_config(TRIALS, constraints=[f"{LOSS} <= 0.05"]),
        lambda *_: pytest.fail("asked"),
        [ended(number) for number in range(TRIALS)],
    )


def ended(number: int) -> TrialRecord:
    params = {"recipe": "lora", "lora/rank": 4, "lora/learning_rate": 1e-4}
    status = ENDINGS.get(number, TrialStatus.COMPLETE)
    return trial(number, scores(0.1 * number, 0.01 * number), status, params=params)


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
    for served, wanted_trial in zip(study["trials"], wanted, strict=True):
        assert served["state"].lower() == STATES.get(wanted_trial.number, "complete")
        if wanted_trial.values is None:
            assert not served.get("values")
        else:
            assert served["values"] == pytest.approx(wanted_trial.values)
        shown = {p["name"]: p["param_external_value"] for p in served["params"]}
        assert shown == {name: str(value) for name, value in wanted_trial.params.items()}
        attributes = {a["key"]: a["value"] for a in served["user_attrs"]}
        assert attributes == {name: str(v) for name, v in wanted_trial.user_attrs.items()}
    *complete, diverged = sorted(
        (t for t in study["trials"] if t.get("values")), key=lambda t: t["number"] == 7
    )
    gains, losses = zip(*(trial["values"] for trial in complete), strict=True)
    assert diverged["values"] == [min(gains), max(losses)]
