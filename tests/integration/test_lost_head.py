"""The head of a cluster is killed; the same command on a new head goes on."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import pytest
from conftest import SMALL
from ray.util import get_node_ip_address

from trainables.ledger import Ledger
from trainables.records import TrialStatus

if TYPE_CHECKING:
    from trainables.base_evaluation import Base

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
TRIALS = 5
SETTINGS = (
    *SMALL,
    f"budget.trials={TRIALS}",
    "resources.max_concurrent=2",
    "resources.lora.cpus_per_worker=0.5",
    "resources.full.cpus_per_worker=0.5",
    "sampler=random",
    "wandb.mode=disabled",
)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that head and driver share; by itself Ray keeps one in the user's home."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid4().hex)


@contextmanager
def head() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a cluster of its own; all of it is killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = mkdtemp(prefix="head-")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--port", str(port), "--temp-dir", folder, "--num-cpus", "2"]
    command += ["--include-dashboard", "false"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    ray = subprocess.Popen(command, **quiet)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (Path(folder) / "ray_current_cluster").exists():
            time.sleep(0.1)
        yield f"{get_node_ip_address()}:{port}", ray
    finally:
        kill(ray)
        shutil.rmtree(folder, ignore_errors=True)


def kill(ray: subprocess.Popen[bytes]) -> None:
    """SIGKILL to all processes of a head."""
    if ray.poll() is None:
        for process in (*psutil.Process(ray.pid).children(recursive=True), ray):
            process.kill()
        ray.wait()


def start(address: str, folder: Path) -> subprocess.Popen[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [
            *(sys.executable, str(HERE / "fake_command.py"), "quickstart", "--address", address),
            *("--output-dir", str(folder), *settings),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(ledger: Ledger) -> dict[int, object]:
    if not ledger.exists():
        return {}
    return {r.number: r for r in ledger.trials() if r.status is not TrialStatus.RUNNING}


def test_the_same_command_on_a_new_head_goes_on(
    base: Base, base_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / ".base").symlink_to(base_cache)
    ledger = Ledger(tmp_path / "quickstart")
    with head() as (address, ray):
        driver = start(address, tmp_path)
        while driver.poll() is None and len(ended(ledger)) < 2:
            time.sleep(0.05)
        kill(ray)
        said, _ = driver.communicate(timeout=30)
    before = ended(ledger)
    assert driver.returncode == 3, said
    assert said.count("the cluster's head answers no more") == 1
    assert "Traceback" not in said
    assert 2 <= len(before) < TRIALS
    with head() as (address, _):
        driver = start(address, tmp_path)
        said, _ = driver.communicate(timeout=90)
    assert driver.returncode == 0, said
    after = ended(ledger)
    assert len(after) == TRIALS
    assert {number: after[number] for number in before} == before
    for number in after:
        steps = [m.step for m in ledger.measurements(number)]
        assert steps == list(range(1, len(steps) + 1))
