"""Hosts of a cluster that go in the middle of a trial, with notice and without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SMALL, told_by
from killed_trials import history

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

if TYPE_CHECKING:
    from trainables.evaluation.base_scores import Base

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1].joinpath("sweep_losing_nodes.py")
TRIAL = (
    *SMALL,
    "search={lora: {rank: 4, alpha: 8, dropout: 0.2, learning_rate: 1.0e-3}}",
    "budget={trials: 1, retries: 0}",
    "sampler=random",
    "train.steps=90",
    "train.report_every=30",
    "wandb.mode=offline",
)


def test_a_lost_node_costs_no_failure_and_few_steps_and_no_token_is_written_down(
    base: Base, base_cache: Path, tmp_path: Path
) -> None:
    told = told_by(SCRIPT, "trials", tmp_path, base_cache, *TRIAL)
    seen = {name: sweep["steps"] for name, sweep in told["sweeps"].items()}
    ledgers = {name: Ledger(tmp_path / name) for name in seen}
    for name, attempts in (("undisturbed", 1), ("drained", 2), ("killed", 2)):
        (record,) = ledgers[name].trials()
        ending = record.status, record.attempt, record.failures
        assert ending == (TrialStatus.COMPLETE, attempts, 0)
        assert history(ledgers[name]) == history(ledgers["undisturbed"])
    (record,) = ledgers["drained in a slot"].trials()
    assert (record.status, record.attempt, record.failures) == (TrialStatus.COMPLETE, 2, 0)
    # With notice a checkpoint is made where the trial stands; without, the last one has to do.
    for name in ("drained", "drained in a slot"):
        (*_, last), (first, *_) = seen[name].values()
        assert 20 <= last < 90
        assert first == last + 1
    assert told["token_found_in"] == []
    (*_, last), (first, *rest) = seen["killed"].values()
    assert last - first < 30
    assert rest == list(range(first + 1, 91))


def test_a_drain_is_noticed_after_the_node_of_the_request_is_lost() -> None:
    assert told_by(SCRIPT, "request") is True
