"""A head as `ray start --head` makes it, a cluster of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import psutil
import pytest
from ray.util import get_node_ip_address


def share_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that head and driver share; by itself Ray keeps one in the user's home."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid4().hex)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head(port: int, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a cluster of its own; all of it is killed at the end."""
    folder = mkdtemp(prefix="head-")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--port", str(port), "--temp-dir", folder]
    command += ["--include-dashboard", "false", *options]
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
            with suppress(psutil.NoSuchProcess):  # it has just ended by itself
                process.kill()
        ray.wait()
