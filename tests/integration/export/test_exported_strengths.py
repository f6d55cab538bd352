"""An exported strength scores, loaded by plain libraries, exactly what was recorded of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from plain_scores import assert_scores, loaded

from analysis.export.strength import set_strength
from trainables.evaluation.base_scores import Base
from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.records.schema import TrialRecord, TrialStatus
from trainables.training.reporter import ListReporter
from trainables.workers.method import trial_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

STRENGTHS = (0.15, 0.4)
TRAIN = {"steps": 60, "batch_size": 16, "micro_batch_size": 16, "report_every": 60}
TRIALS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 8, "alpha": 32.0}, "learning_rate": 7e-3},
    "oft": {"method": "oft", "oft": {"block_size": 32}, "learning_rate": 2e-2},
    "hra": {"method": "hra", "learning_rate": 1e-2},
    "full": {"method": "full", "learning_rate": 3e-3, "seed": 3},
}


def trained(trial: TrialConfig) -> tuple[TrialRecord, Path]:
    """A trial with its points, and its weights."""
    reporter = ListReporter()
    result = trial_function(trial)(trial, reporter)
    assert result.weights_dir is not None
    record = TrialRecord(config=trial, params={}, status=TrialStatus.COMPLETE, started=0.0)
    for measurement in reporter.measurements:
        record = record.after(measurement)
    return record, Path(result.weights_dir)


@pytest.mark.parametrize("method", TRIALS)
def test_an_exported_strength_scores_what_was_recorded(
    make_trial: Callable[..., TrialConfig], base: Base, tmp_path: Path, method: str
) -> None:
    trial = make_trial(**{"train": TRAIN, "strengths": STRENGTHS} | TRIALS[method])
    record, weights = trained(trial)
    assert [point.strength for point in record.curve] == [*STRENGTHS, 1.0]
    learned = [point.metric(IN_DOMAIN_ACC) for point in record.curve]
    assert len(set(learned)) > 1, learned  # or equal scores would show nothing
    for view in record.curve:
        folder = tmp_path / str(view.strength)
        shutil.copytree(weights, folder)
        set_strength(folder, view)
        assert view.last is not None
        assert_scores(view.last, loaded(trial, folder), trial, base)
