"""Getting hold of a Ray cluster: one that is up, or one on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.errors import Fault, UserError

_PROJECT = Path(__file__).resolve().parent.parent
_PACKAGES = ("tune", "trainables", "analysis")
_CONNECT_TIMEOUT_S = 10.0
_ASK_TIMEOUT_S = 60.0

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `stopping` has a gentler one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on this machine; let go at the end.

    A running cluster is sent this project's code, so that no worker runs another version than
    the driver.

    Raises:
        UserError: no cluster answers.
    """
    os.environ |= {key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}
    import ray

    if ray.is_initialized():  # a test's or a notebook's own
        yield
        return
    environment: dict[str, Any] = {"env_vars": dict(_WORKER_ENVIRONMENT)}
    if address is not None:
        _check_answers(address)
        environment["py_modules"] = [str(_PROJECT / package) for package in _PACKAGES]
    try:
        ray.init(
            address=address or "local",
            runtime_env=environment,
            log_to_driver=False,
            include_dashboard=False if address is None else None,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Fail fast where nobody listens; Ray itself tries for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        [
            Fault(
                "--address",
                f"no Ray cluster answers at {address or 'this machine'}: {reason}",
                "start one with `ray up cluster.yaml` or `ray start --head`, or leave it out to "
                "run on this machine",
            )
        ]
    )


def smallest_gpu() -> int | None:
    """Bytes of the smallest GPU of any node that is up; None where there is none to ask."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(gpu_bytes)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    if not asked:
        return None
    questions = [node.remote() for node in asked]
    answers, _ = ray.wait(questions, num_returns=len(questions), timeout=_ASK_TIMEOUT_S)
    return min((size for size in ray.get(answers) if size), default=None)


def gpu_bytes() -> int | None:
    """Bytes of this node's smallest GPU; asks the driver, so a GPU in use need not be free."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    done = subprocess.run(  # noqa: S603 - a fixed command
        [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=_ASK_TIMEOUT_S,
        check=False,
    )
    sizes = [int(line) << 20 for line in done.stdout.split() if line.isdigit()]
    return min(sizes, default=None)
