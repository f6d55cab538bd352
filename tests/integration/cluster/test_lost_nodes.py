"""Trials whose hosts are lost, with notice and without, go on elsewhere."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_trials import SMALL, output_of

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

if TYPE_CHECKING:
    from trainables.evaluation.base_scores import Base

pytestmark = pytest.mark.ray

SCRIPT = Path(__file__).parents[1].joinpath("sweep_losing_nodes.py")
TRIAL = (*SMALL, "budget={trials: 1, retries: 0}", "train.report_every=30", "wandb.mode=offline")


def run(kind: str, folder: Path, base_cache: Path, *overrides: str) -> tuple[list[list[int]], Any]:
    """The steps that each attempt measured, and all that was seen, of a trial that completes."""
    seen = output_of(SCRIPT, kind, folder / "sweep", base_cache, *TRIAL, *overrides)
    (record,) = Ledger(folder / "sweep").trials()
    assert (record.status, record.attempt, record.failures) == (TrialStatus.COMPLETE, 3, 0)
    assert seen["token"] == []
    # Each attempt has other processes, and leaves the node that was lost.
    nodes = list(seen["nodes"].values())
    for lost, (before, after) in zip(seen["lost"], pairwise(nodes), strict=True):
        assert lost in before.values()
        assert lost not in after.values()
        assert before.keys().isdisjoint(after)
    return list(seen["steps"].values()), seen


def test_a_trial_saves_a_checkpoint_on_notice_and_loses_few_steps_without(
    base: Base, base_cache: Path, tmp_path: Path
) -> None:
    search = "search={lora: {rank: 4, alpha: 8, learning_rate: 1.0e-3}}"
    settings = (search, "sampler=random", "resources.lora.slots=0", "train.steps=300")
    (first, second, third), _ = run("trials", tmp_path, base_cache, *settings)
    assert first[-1] >= 20
    assert second[0] == first[-1] + 1
    # From the newest checkpoint: that of the notice, or of a report, which may lack its evaluation,
    # as the process trains on until it notices that its node is gone.
    assert third[0] > 30
    assert third[0] == second[0] or third[0] % 30 in (0, 1)
    assert third == list(range(third[0], 301))


@pytest.mark.slow
def test_a_group_that_loses_hosts_with_notice_loses_no_step(
    base: Base, base_cache: Path, tmp_path: Path
) -> None:
    search = "search={full: {learning_rate: [3.0e-4]}}"
    of_group = ("resources.full.workers=2", "train.micro_batch_size=4", "train.steps=100")
    steps, seen = run("groups", tmp_path, base_cache, search, "sampler=grid", *of_group)
    assert steps[0] + steps[1] + steps[2] == list(range(1, 101))
    # Two workers and the process that waits for them lie on three nodes.
    assert [len(set(nodes.values())) for nodes in seen["nodes"].values()] == [3, 3, 3]
