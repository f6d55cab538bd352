"""The ranks and devices of a group's workers, and what their errors mean for the trial."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from torch.distributed import DistBackendError, DistNetworkError

from trainables.errors import Diverged
from trainables.training.reporter import ListReporter
from trainables.workers import worker
from trainables.workers import worker_group as group
from trainables.workers.trial_outcome import most_telling
from trainables.workers.worker import _LONGEST_WAIT, Home, StoppedByTune, environments


def test_workers_of_a_node_share_its_gpus_and_count_them_by_local_rank() -> None:
    homes = [Home("10.0.0.1", "2"), Home("10.0.0.1", "5"), Home("10.0.0.2", "0")]
    told = environments(homes)
    assert [e["RANK"] for e in told] == ["0", "1", "2"]
    assert [e["LOCAL_RANK"] for e in told] == ["0", "1", "0"]
    assert [e["LOCAL_WORLD_SIZE"] for e in told] == ["2", "2", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in told] == ["2,5", "2,5", "0"]
    assert {e["WORLD_SIZE"] for e in told} == {"3"}
    assert {e["MASTER_ADDR"] for e in told} == {"10.0.0.1"}


def test_workers_without_gpus_keep_what_they_see() -> None:
    (told,) = environments([Home("10.0.0.1", "")])
    assert "CUDA_VISIBLE_DEVICES" not in told


JOINS = """
from trainables.workers.worker import Worker, environments, Home

worker = Worker()
(environment,) = environments([Home("127.0.0.1", "")])
worker.join(environment | {"MASTER_PORT": str(worker.serve("127.0.0.1"))})
print(worker._store.timeout)
"""


def test_who_waits_to_be_connected_waits_as_long_as_for_an_evaluation() -> None:
    """NCCL connects at the first exchange, when the slowest worker has loaded everything."""
    done = subprocess.run([sys.executable, "-c", JOINS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(_LONGEST_WAIT)


_NEIGHBOUR = RuntimeError("[gloo] Connection closed by peer")


@pytest.mark.parametrize(
    "cause",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        Diverged("step 3: loss nan"),
        OSError(28, "No space left on device"),
        RayActorError(),
    ],
)
def test_the_cause_is_told_before_what_followed_from_it(cause: BaseException) -> None:
    assert most_telling([_NEIGHBOUR, cause]) is cause


def test_a_worker_that_ran_out_of_memory_is_told_before_one_that_died() -> None:
    cause = MemoryError()
    assert most_telling([RayActorError(), cause]) is cause


class Group:
    """One whose training ends in an error, and its workers in theirs."""

    def __init__(self, error: RayError, failures: list[BaseException]) -> None:
        self._error, self._failures = error, failures

    def train(self, *_: Any) -> None:
        raise self._error

    def failures(self) -> list[BaseException]:
        return self._failures

    def kill(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("cause", "raised", "says"),
    [
        (DistBackendError("NCCL error: remote process exited"), RayActorError, "NCCL error"),
        (_NEIGHBOUR, RayActorError, "Connection closed by peer"),
        (DistBackendError("Cuda failure 2 'out of memory'"), DistBackendError, "out of memory"),
        (ValueError("no such layer"), ValueError, "no such layer"),
    ],
)
def test_workers_that_lose_each_other_end_as_one_that_died(
    cause: Exception, raised: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the trial goes on in its next attempt, whereas less memory or another error is its own."""
    monkeypatch.setattr(group, "_ready_group", lambda trial: Group(RayError(), [cause]))
    trial: Any = SimpleNamespace(workers=2)
    with pytest.raises(raised, match=says):
        group.train_on_workers(trial, ListReporter().report)


@pytest.mark.parametrize(
    ("cause", "raised"),
    [(DistNetworkError("reset by peer"), RayActorError), (KeyError(), KeyError)],
)
def test_so_they_do_where_one_is_lost_as_they_meet(
    cause: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def meet(trial: Any) -> Any:
        raise RayTaskError("join", "", cause).as_instanceof_cause()

    monkeypatch.setattr(group, "_ready_group", meet)
    trial: Any = SimpleNamespace(workers=2)
    with pytest.raises(raised):
        group.train_on_workers(trial, ListReporter().report)


def test_a_group_that_is_lost_without_a_word_ends_as_one_that_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers cannot be reached, and may train on."""
    error = RayActorError(error_msg="cannot be reached")
    monkeypatch.setattr(group, "_ready_group", lambda trial: Group(error, []))
    trial: Any = SimpleNamespace(workers=2)
    with pytest.raises(RayActorError, match="cannot be reached"):
        group.train_on_workers(trial, ListReporter().report)


@pytest.mark.parametrize(
    ("error", "raises", "is_stopped"),
    [
        (None, nullcontext(), False),
        (StoppedByTune(), nullcontext(), True),
        (Diverged("NaN"), pytest.raises(Diverged), False),
        (KeyError("a fault"), pytest.raises(KeyError), False),
    ],
    ids=["complete", "stopped", "diverged", "failed"],
)
def test_a_worker_publishes_no_results_of_a_trial_that_tune_has_stopped(
    error: BaseException | None,
    raises: Any,
    is_stopped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its end is recorded, and what of it was in the store is deleted already."""
    published: list[bool] = []

    def train(trial: Any, reporter: Any) -> Any:
        if error is not None:
            raise error
        return SimpleNamespace(best_weights_dir=None)

    def publish(trial: Any, rank: int, is_stopped: bool = False) -> None:
        published.append(is_stopped)

    for name in ("use_credentials", "check_sees", "check_granted_gpus"):
        monkeypatch.setattr(worker, name, lambda *_: None)
    monkeypatch.setattr(worker, "trial_function", lambda trial: train)
    monkeypatch.setattr(worker, "publish_worker", publish)
    monkeypatch.setenv("RANK", "0")
    folder = {"base_dir": str(tmp_path), "output_dir": str(tmp_path), "published_dir": None}
    trial: Any = SimpleNamespace(**folder, number=0, workers=2, minutes_per_report=None)
    with raises:
        worker.Worker().train(trial)
    assert published == [is_stopped]
