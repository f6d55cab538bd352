"""The ranks and devices of a group's workers, and what their errors mean for the trial."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError, RayError
from torch.distributed import DistBackendError

from trainables.errors import Diverged
from trainables.training.reporter import ListReporter
from trainables.workers import worker_group as group
from trainables.workers.trial_outcome import most_telling
from trainables.workers.worker import Home, environments


def test_workers_of_a_node_share_its_gpus_and_count_them_by_local_rank() -> None:
    homes = [Home("10.0.0.1", "2"), Home("10.0.0.1", "5"), Home("10.0.0.2", "0")]
    members = environments(homes)
    assert [e["RANK"] for e in members] == ["0", "1", "2"]
    assert [e["LOCAL_RANK"] for e in members] == ["0", "1", "0"]
    assert [e["LOCAL_WORLD_SIZE"] for e in members] == ["2", "2", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in members] == ["2,5", "2,5", "0"]
    assert {e["WORLD_SIZE"] for e in members} == {"3"}
    assert {e["MASTER_ADDR"] for e in members} == {"10.0.0.1"}
    (without_gpu,) = environments([Home("10.0.0.1", "")])
    assert "CUDA_VISIBLE_DEVICES" not in without_gpu


_NEIGHBOUR = RuntimeError("[gloo] Connection closed by peer")


@pytest.mark.parametrize(
    ("cause", "others"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), _NEIGHBOUR),
        (Diverged("step 3: loss nan"), _NEIGHBOUR),
        (RayActorError(), _NEIGHBOUR),
        (MemoryError(), RayActorError()),
    ],
)
def test_a_group_reports_the_first_error(cause: BaseException, others: BaseException) -> None:
    assert most_telling([others, cause]) is cause


class Group:
    """A group whose training ends in an error, and its workers in theirs, by rank."""

    def __init__(self, error: RayError, failures: dict[int, BaseException]) -> None:
        self._error, self._failures = error, failures

    def train(self, *_: Any) -> None:
        raise self._error

    def failures(self) -> dict[int, BaseException]:
        return self._failures

    def kill(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("failures", "raised", "text"),
    [
        ({1: DistBackendError("NCCL error: gone")}, RayActorError, "worker 1 of 2: .*NCCL error"),
        ({0: _NEIGHBOUR, 1: RayActorError(error_msg="killed")}, RayActorError, "worker 1.*killed"),
        ({0: DistBackendError("CUDA 'out of memory'")}, DistBackendError, "out of memory"),
        ({1: ValueError("no such layer")}, ValueError, "no such layer"),
        ({}, RayActorError, "cannot be reached"),
    ],
)
def test_a_lost_worker_is_named_and_its_trial_goes_on(
    failures: dict[int, BaseException],
    raised: type[Exception],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A RayActorError has the trial go on in its next attempt; other errors are its own."""
    lost = RayActorError(error_msg="cannot be reached")
    monkeypatch.setattr(group, "_ready_group", lambda trial: Group(lost, failures))
    trial: Any = SimpleNamespace(workers=2)
    with pytest.raises(raised, match=text):
        group.train_on_workers(trial, ListReporter().report)
