"""Which trials are inspected by default."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import GAIN, LOSS, adapter, sweep_config, trial
from ray.exceptions import RayError, RayTaskError

from analysis.results.default_selection import default_selection
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import TrialRecord, TrialStatus
from tune.cluster.inspections import inspect_trials

GOALS = sweep_config()


def scored(
    number: int, rank: int | None, accuracy: float, forgetting: float | None, **fields: Any
) -> TrialRecord:
    metrics = {GAIN: accuracy}
    if forgetting is not None:
        metrics[LOSS] = forgetting
    method = adapter(rank=rank, alpha=8) if rank else adapter("full")
    rate = 1e-5 * (1 + fields.get("confirms", number))
    fields = {
        "weights_dir": "w",
        "learning_rate": rate,
        "recipe": method.name,
        "method": method,
        **fields,
    }
    return trial(number, metrics, **fields)


def test_front_best_of_each_rank_and_best_full() -> None:
    records = [
        scored(0, 4, 0.9, 0.1),  # on the front
        scored(1, 4, 0.8, 0.2),
        scored(2, 8, 0.7, 0.3),  # best of rank 8
        scored(3, 8, 0.6, 0.3),
        scored(4, None, 0.5, 0.2),  # best full
        scored(5, None, 0.4, 0.19),
        scored(6, 16, 0.2, 0.0),  # on the front
    ]
    assert default_selection(GOALS, records) == [0, 2, 4, 6]


def test_what_repeats_recommend_is_among_them() -> None:
    records = [scored(0, 4, 0.9, 0.0), scored(1, 4, 0.8, 0.1), scored(2, 4, 0.7, 0.2)]
    assert default_selection(GOALS, records) == [0]
    repeats = [scored(3, 4, 0.1, 0.3, confirms=0), scored(4, 4, 0.8, 0.1, confirms=1)]
    assert default_selection(GOALS, [*records, *repeats]) == [0, 1]
    lost = {"status": TrialStatus.DIVERGED, "weights_dir": None}
    repeats = [
        scored(3, 4, 0.9, 0.0, confirms=0),
        scored(4, 4, 0.1, 0.9, confirms=0, **lost),
        scored(5, 4, 0.7, 0.2, confirms=1),
    ]
    assert default_selection(GOALS, [*records, *repeats]) == [0, 1]


def test_without_weights_or_scores_a_trial_is_not_notable() -> None:
    records = [
        scored(0, 4, 0.9, 0.1, weights_dir=None),
        scored(1, 8, 0.9, 0.1, status=TrialStatus.STOPPED_EARLY),
        scored(2, 16, 0.9, None),
        trial(3, status=TrialStatus.FAILED),
    ]
    assert default_selection(GOALS, records) == []


def _answer(reason: str | RayError | None) -> str | None:
    if isinstance(reason, RayError):
        raise reason
    return reason


def test_a_sweep_reports_inspections_and_their_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = RayTaskError("inspect", "Traceback\n  ...", OSError("no weights"))
    reasons = {0: None, 2: failure.as_instanceof_cause(), 3: "no weights\nhere"}
    task = SimpleNamespace(remote=lambda _, number: reasons[number])
    module = "tune.cluster.inspections"
    monkeypatch.setattr(f"{module}.as_task", lambda *_: task)
    monkeypatch.setattr(f"{module}.ray", SimpleNamespace(get=_answer))
    records = [scored(0, 4, 0.9, 0.1), scored(1, 4, 0.8, 0.2), scored(2, None, 0.5, 0.3)]
    records.append(scored(3, 8, 0.5, 0.3))
    lines: list[str] = []
    inspect_trials(GOALS, SweepFolder(tmp_path), {"CPU": 2.0}, records, lines.append)
    assert lines == [
        "inspecting trials 0, 2, 3 ...",
        "inspected trial 0",
        "warning: cannot inspect trial 2: no weights",
        "warning: cannot inspect trial 3: no weights",
    ]
