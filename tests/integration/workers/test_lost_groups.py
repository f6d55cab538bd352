"""Hosts of a group of workers go, with notice, in the middle of the group's trial."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SMALL, told_by
from killed_trials import history

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

if TYPE_CHECKING:
    from trainables.evaluation.base_scores import Base

pytestmark = pytest.mark.ray

SCRIPT = Path(__file__).parents[1].joinpath("sweep_losing_nodes.py")
STEPS = 100
TRIAL = (
    *SMALL,
    "search={full: {learning_rate: [3.0e-4]}}",
    "sampler=grid",
    "resources.full.workers=2",
    "budget={trials: 1, retries: 0}",
    "train.micro_batch_size=4",
    f"train.steps={STEPS}",
    "train.report_every=30",
    "wandb.mode=offline",
)


@pytest.mark.slow
def test_a_group_that_loses_hosts_goes_on_elsewhere_and_loses_no_step(
    base: Base, base_cache: Path, tmp_path: Path
) -> None:
    told = told_by(SCRIPT, "groups", tmp_path, base_cache, *TRIAL)
    assert told["token_found_in"] == []
    ledgers = {name: Ledger(tmp_path / name) for name in ("undisturbed", "drained")}
    for name, attempts in (("undisturbed", 1), ("drained", 3)):
        (record,) = ledgers[name].trials()
        ending = record.status, record.attempt, record.failures
        assert ending == (TrialStatus.COMPLETE, attempts, 0)
    assert history(ledgers["drained"]) == history(ledgers["undisturbed"])
    seen = told["sweeps"]["drained"]
    first, second, third = seen["steps"].values()
    assert 20 <= first[-1] < 65 <= second[-1] < STEPS
    assert first + second + third == list(range(1, STEPS + 1))
    # Two workers and the process that waits for them lay on three nodes. The group ended, and
    # another was made without the node that was about to go.
    lay_on = list(seen["lay_on"].values())
    assert [len(set(nodes.values())) for nodes in lay_on] == [3, 3, 3]
    for taken, (before, after) in zip(seen["taken"], pairwise(lay_on), strict=True):
        assert taken in before.values()
        assert taken not in after.values()
        assert before.keys().isdisjoint(after)
