"""What a cluster that starts on this machine is told of it."""

from __future__ import annotations

import os

import pytest

from tune.ray_cluster import _of_a_new_one


@pytest.mark.parametrize(("counted_by_ray", "expected"), [(64, 3), (2, 2)])
def test_it_has_the_cpus_that_the_command_may_use(
    counted_by_ray: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what Slurm gives Ray counts the whole machine, of what a container has its share."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: counted_by_ray)
    assert _of_a_new_one()["num_cpus"] == expected
