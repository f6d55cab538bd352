"""Getting hold of a Ray cluster: one that is up, or one on this machine."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from trainables.errors import Fault, UserError, first_line
from tune.stopping import ignoring_hangup

_PROJECT = Path(__file__).resolve().parent.parent
_PACKAGES = ("tune", "trainables", "analysis")
_CONNECT_TIMEOUT_S = 10.0
_LOOK_AT_HEAD_EVERY_S = 1.0
# Ray itself waits for a minute and then aborts the process, with nothing said to the user. A head
# that keeps its state elsewhere may be back before.
_HEAD_IS_LOST_AFTER_S = 20.0

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `stopping` has a gentler one
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # none of what Tune saves is read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # glibc gives freed memory back to the system, and each training step gets it anew, page by
    # page: up to a sixth of a small model's step on a CPU. One arena: those of threads, where slots
    # train, consist of pieces of 64 MiB, which it gives back whatever the threshold.
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_ARENA_MAX": "1",
}


@contextmanager
def ray_cluster(
    address: str | None, head_is_lost: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on this machine; let go at the end.

    A running cluster is sent this project's code, so that no worker runs another version than
    the driver.

    Args:
        address: of the cluster.
        head_is_lost: called from a thread of its own where the head answers no more; calls into
            Ray may never return then.

    Raises:
        UserError: no cluster answers, or it runs other versions.
    """
    os.environ |= {key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}
    import ray

    if ray.is_initialized():  # a test's or a notebook's own
        _send_nothing_with_trials()
        yield
        return
    if address is None:
        _let_processes_inherit()
    else:
        _check_answers(address)
    options = _of_a_new_one() if address is None else {"runtime_env": _sent_environment()}
    starting = ignoring_hangup() if address is None else nullcontext()
    try:
        with starting:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.WARNING,
                **options,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        ray.shutdown()
        refusal = _other_versions(error) or _other_token(address, error)
        raise refusal or _no_cluster(address, error) from error
    from trainables.under_ray.credentials import sharing_credentials

    # The processes of a cluster that starts here have this process's environment.
    sharing = nullcontext() if address is None else sharing_credentials()
    _send_nothing_with_trials()
    try:
        gcs = ray.get_runtime_context().gcs_address
        with _watching_head(gcs, head_is_lost), sharing:
            yield
    finally:
        ray.shutdown()


def _send_nothing_with_trials() -> None:
    """Keep Tune from giving trials an environment of their own.

    It would hold AWS's keys, which Ray writes to its logs then (`sharing_credentials` does not).
    And Ray starts a process that is given an environment by way of another, which imports Ray as
    well: half a second of a core.
    """
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()


def _let_processes_inherit() -> None:
    """Give the processes of a cluster that starts on this machine their environment."""
    os.environ |= {key: os.environ.get(key, value) for key, value in _WORKER_ENVIRONMENT.items()}


def _of_a_new_one() -> dict[str, Any]:
    """Options of Ray's for a cluster that starts on this machine.

    Of CPUs it has those that this process may use: of a part of a machine, as Slurm gives it, or
    `taskset`, Ray counts the whole.
    """
    from ray._private.utils import get_num_cpus

    cpus = int(get_num_cpus())
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cpus = min(cpus, len(os.sched_getaffinity(0)))
    return {"num_cpus": cpus, "include_dashboard": False}


def _sent_environment() -> dict[str, Any]:
    """Environment and code for the processes of a cluster that is up."""
    modules = [str(_PROJECT / package) for package in _PACKAGES]
    return {"env_vars": dict(_WORKER_ENVIRONMENT), "py_modules": modules}


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
    """Fail fast where nobody listens; Ray itself tries for minutes."""
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
        _shake_hands(address)
    except OSError as error:
        raise _no_cluster(address, error) from error


def _shake_hands(address: str) -> None:
    """See whether it is gRPC that listens, as a cluster's head does.

    Raises:
        ConnectionError: it is something else.
    """
    import grpc

    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return  # what the head asks for then, Ray knows
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_TIMEOUT_S / 2)
        except grpc.FutureTimeoutError:
            raise ConnectionError("what listens there is no Ray head") from None


def _running_here() -> str:
    """The address that Ray would take for `auto`."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(os.environ.get("RAY_ADDRESS") or canonicalize_bootstrap_address("auto"))
    except ConnectionError as error:
        reason = ConnectionError("none runs on this machine, and RAY_ADDRESS is not set")
        raise _no_cluster("auto", reason) from error


def _other_versions(error: Exception) -> UserError | None:
    """Ray's refusal of a driver that is another Ray or Python than the head, in our words."""
    found = re.findall(r"(?:Ray|Python): (\S+)", str(error))
    if "ersion mismatch" not in str(error) or len(found) != 4:
        return None
    theirs, ours = f"Ray {found[0]} and Python {found[1]}", f"Ray {found[2]} and Python {found[3]}"
    remedy = "start the command on the head, or install the cluster's versions here"
    return UserError(
        [Fault("--address", f"the cluster runs {theirs}, this command {ours}", remedy)]
    )


def _other_token(address: str | None, error: Exception) -> UserError | None:
    """Ray's refusal of a driver that does not know the cluster's token, in our words."""
    if "AuthToken" not in f"{error} {error.__cause__}":
        return None
    rule = f"the cluster at {address} asks for a token, and this command does not have it"
    remedy = (
        "start it on the head, with --address auto, or with RAY_AUTH_MODE=token and, in "
        "RAY_AUTH_TOKEN, what `ray get-auth-token` prints there"
    )
    return UserError([Fault("--address", rule, remedy)])


def _no_cluster(address: str | None, error: Exception) -> UserError:
    return UserError(
        [
            Fault(
                "--address",
                f"no Ray cluster answers at {address or 'this machine'}: {first_line(error)}",
                "start one with `ray up cluster.yaml` or `ray start --head`, or leave it out to "
                "run on this machine",
            )
        ]
    )
