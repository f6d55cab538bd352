"""Connecting to a running Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from trainables.errors import Fault, UserError, error_text, first_line
from tune.cluster.other_users import FOLDER, keep_others_out
from tune.process_signals import ignoring_hangup

_PROJECT = Path(__file__).resolve().parents[2]
_PACKAGES = ("tune", "trainables", "analysis")
_CONNECT_TIMEOUT_S = 10.0
_LOOK_AT_HEAD_EVERY_S = 1.0
# Ray itself waits for a minute and then aborts the process without telling the user. A head that
# keeps its state elsewhere may be back sooner.
_HEAD_IS_LOST_AFTER_S = 20.0

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `stopping_gently` has a gentler handler
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # none of what Tune saves is read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often a base evaluation is retried that ran out of its node's memory.
    "RAY_task_oom_retries": "2",
    # Else Tune itself restarts a trial of a preempted node, with its attempt's number and folder.
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
}
_WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A process that is given no GPU sees none, else torch would take one that others have.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # cuDNN's attention, torch's first choice on Hopper and Blackwell, is planned anew for each
    # number and length of sequences, so in nearly every pass: 40 ms to half a second.
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    # How long a process waits for a stopped trial to leave before it trains the next one. If this
    # runs out, by default after 2 seconds, Tune loses the next one silently. The watchdog ends a
    # process that a trial does not leave long before (`MINUTES_TO_LEAVE`).
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "3600",
    # Else glibc returns freed memory to the system and each step gets it back page by page: up to
    # a sixth of a small model's step on a CPU. Arenas of threads would do so at any threshold.
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_ARENA_MAX": "1",
}


@contextmanager
def ray_cluster(
    address: str | None, head_is_lost: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on this machine; disconnect at the end.

    Every worker runs the driver's version of this project's code, which a running cluster is sent.

    Args:
        address: address of the cluster; None starts one on this machine.
        head_is_lost: called from its own thread when the head no longer answers; calls into Ray
            may then never return.

    Raises:
        UserError: no cluster answers, it runs other versions, or none starts on this machine.
    """
    _set_unless_given(_ENVIRONMENT)
    import ray

    if ray.is_initialized():  # by a test
        _send_nothing_with_trials()
        yield
        return
    sharing: AbstractContextManager[None] = nullcontext()
    if address is None:
        _start()
    else:
        _join(address)
        from trainables.workers.credentials import sharing_credentials

        sharing = sharing_credentials()
    _send_nothing_with_trials()
    try:
        gcs = ray.get_runtime_context().gcs_address
        with _watching_head(gcs, head_is_lost), sharing:
            yield
    finally:
        ray.shutdown()


def _start() -> None:
    """Start a cluster on this machine, whose processes inherit this process's environment."""
    keep_others_out()
    _set_unless_given(_WORKER_ENVIRONMENT)
    # Before a version that is installed, perhaps from another clone.
    found_first = [str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(found_first)
    with ignoring_hangup():
        _init(None, num_cpus=usable_cpus(), include_dashboard=False)


def _join(address: str) -> None:
    """Connect to a running cluster, whose processes are sent the environment and the code."""
    _check_answers(address)
    modules = [str(_PROJECT / package) for package in _PACKAGES]
    _init(address, runtime_env={"env_vars": dict(_WORKER_ENVIRONMENT), "py_modules": modules})


def _init(address: str | None, **options: Any) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        ray.init(address=address or "local", **quiet, **options)
    except Exception as error:  # Ray raises it where a new cluster's first node is too slow
        ray.shutdown()
        fault = _not_started(error) if address is None else _not_joined(address, error)
        raise fault from error


def _set_unless_given(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _send_nothing_with_trials() -> None:
    """Keep Tune from giving trials their own environment.

    It would hold the AWS keys, which Ray would write to its logs, and each such process would take
    half a second of a core more to start.
    """
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()


def usable_cpus() -> int:
    """CPUs of this machine that this process may use; 1 where it has a part of one.

    Given part of a machine by Slurm or `taskset`, Ray would count the whole; given a container's
    share, Python would.
    """
    from trainables.compat.ray import container_cpus

    cpus = max(1, container_cpus())
    return min(cpus, len(os.sched_getaffinity(0)))


@contextmanager
def _watching_head(address: str, is_lost: Callable[[], None]) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    ended = Event()

    def watch() -> None:
        seen = time.monotonic()
        while not ended.wait(_LOOK_AT_HEAD_EVERY_S):
            with suppress(OSError):
                socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
                seen = time.monotonic()
            if time.monotonic() - seen > _HEAD_IS_LOST_AFTER_S:
                is_lost()
                return

    Thread(target=watch, name="head", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _check_answers(address: str) -> None:
    """Fail fast if no Ray head listens at the address; Ray itself tries for minutes."""
    import grpc

    if address == "auto":
        address = _running_here()
    if address.startswith("ray://"):
        rule = f"a sweep cannot be driven from outside its cluster, got {address}"
        remedy = "start the command on the head, with --address auto (clusters/README.md)"
        raise UserError([Fault("--address", rule, remedy)])
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        rule = f"must be auto or HOST:PORT, got {address}"
        raise UserError([Fault("--address", rule, "the port of a head is 6379 by default")])
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":  # else only Ray knows what the head requires
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=_CONNECT_TIMEOUT_S / 2)
    except OSError as error:
        raise _no_cluster(address, error) from error
    except grpc.FutureTimeoutError:
        stranger = ConnectionError("what listens there is no Ray head")
        raise _no_cluster(address, stranger) from None


def _running_here() -> str:
    """The address that Ray would use for `auto`."""
    from trainables.compat.ray import running_head

    try:
        return running_head()
    except ConnectionError as error:
        reason = ConnectionError("none runs on this machine, and RAY_ADDRESS is not set")
        raise _no_cluster("auto", reason) from error


def _not_started(error: Exception) -> UserError:
    rule = f"does not start on this machine: {first_line(error)}"
    remedy = (
        f"type the command again if the machine was busy; set {FOLDER} to a folder with a short "
        f"name if Ray cannot write to {os.environ[FOLDER]}, where its logs are"
    )
    return UserError([Fault("Ray", rule, remedy)])


def _not_joined(address: str, error: Exception) -> UserError:
    """Why Ray did not let this process join, as far as its error can be read."""
    from ray.exceptions import RpcError

    found = re.findall(r"(?:Ray|Python): (\S+)", str(error))
    if "ersion mismatch" in str(error) and len(found) == 4:
        rule = "the cluster runs Ray {} and Python {}, this command Ray {} and Python {}"
        remedy = "start the command on the head, or install the cluster's versions here"
        return UserError([Fault("--address", rule.format(*found), remedy)])
    if "AuthToken" in f"{error} {error.__cause__}":
        rule = f"the cluster at {address} asks for a token that this command does not have"
        remedy = (
            "start it on the head, with --address auto, or with RAY_AUTH_MODE=token and, in "
            "RAY_AUTH_TOKEN, what `ray get-auth-token` prints there"
        )
    elif isinstance(error, (ConnectionError, RpcError)):
        return _no_cluster(address, error)
    else:
        rule = (
            f"the cluster at {address} answers, but this command cannot join: {error_text(error)}"
        )
        remedy = "see `ray status` there, and the head's logs, by default in /tmp/ray"
    return UserError([Fault("--address", rule, remedy)])


def _no_cluster(address: str, error: Exception) -> UserError:
    rule = f"no Ray cluster answers at {address}: {first_line(error)}"
    start = "start one with `ray up cluster.yaml` or `ray start --head`"
    return UserError([Fault("--address", rule, f"{start}, or leave it out to run on this machine")])
