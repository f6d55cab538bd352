"""The ranks and devices of a group's workers, and which of their errors is told."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import RayActorError

from trainables.errors import Diverged
from trainables.under_ray.endings import most_telling
from trainables.under_ray.worker import Home, environments


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
