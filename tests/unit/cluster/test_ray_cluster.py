"""Starting a cluster on this machine, and joining one that runs."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import ray
from ray.exceptions import ActorDiedError, RpcError
from ray.tune.experiment import Trial

from trainables.errors import UserError
from trainables.workers.reporters import MINUTES_TO_LEAVE
from tune.cluster import ray_cluster as settings
from tune.cluster.other_users import _own_folder, keep_others_out
from tune.cluster.ray_cluster import _ENVIRONMENT, _WORKER_ENVIRONMENT, ray_cluster


def test_tune_does_not_restart_the_trial_of_a_preempted_node(
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
    # And Tune waits longer for a stopped trial to leave its process than the watchdog.
    assert float(_WORKER_ENVIRONMENT["TUNE_FUNCTION_THREAD_TIMEOUT_S"]) > 120 * MINUTES_TO_LEAVE


STARTED = """
import os, subprocess, sys
from tune.cluster.ray_cluster import ray_cluster
with ray_cluster(None):
    import ray
    address = ray.get_runtime_context().gcs_address
    asks = f"from ray._raylet import GcsClient; GcsClient({address!r})"
    other = os.environ | {"RAY_AUTH_TOKEN": "f" * 64}
    asked = subprocess.run([sys.executable, "-c", asks], env=other, capture_output=True)
    print(asked.returncode, b"AuthenticationError" in asked.stderr)
    print(ray._private.worker.global_worker.node.get_session_dir_path())
"""


@pytest.mark.slow
def test_other_users_of_the_machine_cannot_use_a_cluster_that_starts_here(tmp_path: Path) -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", STARTED],
        env=given | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    others, session = ended.stdout.splitlines()
    assert others == "1 True"
    assert any(parent.stat().st_mode & 0o077 == 0 for parent in Path(session).parents)
    assert [*tmp_path.rglob("*token*")] == []


def test_a_cluster_that_starts_here_gets_a_token_and_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    keep_others_out()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert stat.S_IMODE(Path(os.environ["RAY_TMPDIR"]).stat().st_mode) == 0o700
    (tmp_path / f"ray-of-{os.getuid()}").symlink_to(tmp_path)  # another user's
    with pytest.raises(UserError, match="RAY_TMPDIR"):
        _own_folder(tmp_path)


def refusal(address: str) -> str:
    with pytest.raises(UserError) as caught, ray_cluster(address):
        pass
    return str(caught.value)


@pytest.mark.timeout(20)
def test_an_address_where_no_cluster_answers_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "_set_unless_given", lambda variables: None)
    monkeypatch.setattr(settings, "_CONNECT_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stranger = f"127.0.0.1:{server.getsockname()[1]}"
        assert f"no Ray cluster answers at {stranger}: what listens" in refusal(stranger)
    assert "--address: no Ray cluster answers at 127.0.0.1:1: [Errno 111]" in refusal("127.0.0.1:1")
    assert "must be auto or HOST:PORT, got somewhere" in refusal("somewhere")
    assert "driven from outside its cluster, got ray://head:10001" in refusal("ray://head:10001")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    assert "no Ray cluster answers at auto: none runs on this machine" in refusal("auto")


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (RpcError("timed out"), ["no Ray cluster answers at head:6379: timed out", "start one"]),
        (ValueError("bad"), ["cluster at head:6379 answers", "ValueError: bad", "`ray status`"]),
        (ConnectionError("InvalidAuthToken"), ["asks for a token", "ray get-auth-token"]),
    ],
    ids=["no answer", "another error", "another token"],
)
def test_a_refusal_of_ray_is_explained(
    error: Exception, facts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> NoReturn:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(settings, "_check_answers", lambda address: None)
    monkeypatch.setattr(settings, "_set_unless_given", lambda variables: None)
    text = refusal("head:6379")
    for fact in facts:
        assert fact in text
