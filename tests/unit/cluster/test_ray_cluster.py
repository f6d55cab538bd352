"""What a cluster that starts on this machine is told of it, and what Tune is told."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.tune.experiment import Trial

from trainables.errors import UserError
from trainables.workers.reporters import MINUTES_TO_LEAVE
from tune.cluster.other_users import _own_folder
from tune.cluster.ray_cluster import _ENVIRONMENT, _WORKER_ENVIRONMENT, usable_cpus


@pytest.mark.parametrize(("counted_by_ray", "expected"), [(64, 3), (2, 2)])
def test_it_has_the_cpus_that_the_command_may_use(
    counted_by_ray: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what Slurm gives Ray counts the whole machine, of what a container has its share."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda **asked: counted_by_ray)
    assert usable_cpus() == expected


def test_tune_leaves_the_trial_of_a_preempted_node_to_its_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Trial, "local_path", None)  # where Tune would write of it
    lost = ActorDiedError()
    lost._preempted = True
    trial = Trial("any", stub=True)
    trial.handle_error(lost)
    assert not trial.should_recover()


def test_a_process_that_a_stopped_trial_does_not_leave_ends_before_tune_loses_the_next() -> None:
    tune_waits = float(_WORKER_ENVIRONMENT["TUNE_FUNCTION_THREAD_TIMEOUT_S"])
    assert tune_waits > 2 * 60 * MINUTES_TO_LEAVE


STARTED = """
import os, subprocess, sys
from tune.cluster.ray_cluster import ray_cluster
with ray_cluster(None):
    import ray
    address = ray.get_runtime_context().gcs_address
    asks = f"from ray._raylet import GcsClient; GcsClient({address!r})"
    other = os.environ | {"RAY_AUTH_TOKEN": "f" * 64}
    for asker in (os.environ, other):
        asked = subprocess.run([sys.executable, "-c", asks], env=asker, capture_output=True)
        print(asked.returncode, b"AuthenticationError" in asked.stderr)
    print(ray._private.worker.global_worker.node.get_session_dir_path())
"""


def test_other_users_of_the_machine_cannot_use_a_cluster_that_starts_here(tmp_path: Path) -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", STARTED],
        env=given | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    own, others, session = ended.stdout.splitlines()
    assert (own, others) == ("0 False", "1 True")
    assert any(parent.stat().st_mode & 0o077 == 0 for parent in Path(session).parents)
    assert [*tmp_path.rglob("*token*")] == []


@pytest.mark.parametrize("made_by", ["nobody", "this user", "another user", "a link"])
def test_the_folder_of_a_cluster_is_the_users_own(
    made_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = os.getuid() + (made_by == "another user")
    monkeypatch.setattr(os, "getuid", lambda: user)
    folder = tmp_path / f"ray-of-{user}"
    if made_by == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to("elsewhere")
    elif made_by != "nobody":
        folder.mkdir(mode=0o755)
    if made_by in ("nobody", "this user"):
        assert _own_folder(tmp_path) == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    else:
        with pytest.raises(UserError, match=f"must be this user's own, {folder} is not; set RAY"):
            _own_folder(tmp_path)


def test_a_cluster_that_does_not_start_is_told_of_with_a_remedy(tmp_path: Path) -> None:
    """A socket's path has at most 107 characters, so in such a folder Ray starts nothing."""
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path / ("x" * 100))}
    command = [sys.executable, "tune/run.py", "--output-dir", str(tmp_path / "sweeps")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Ray: does not start on this machine" in ended.stderr
    assert "set RAY_TMPDIR to a folder with a short name" in ended.stderr
    assert "Traceback" not in ended.stderr
