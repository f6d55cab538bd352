"""Drain this machine's Ray node once its cloud has announced that it takes the machine away.

    python drain_on_notice.py {aws,gcp} --address HEAD:6379

A cloud announces this on the machine alone, to those who ask there, and Ray does not ask. On a
drained node trials save a checkpoint and go on elsewhere while the machine still stands.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

logger = logging.getLogger(__name__)

# Metadata services by cloud, and seconds between two questions: what the cloud recommends, or what
# its short notice requires.
SERVICES = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
EVERY_S = {"aws": 5.0, "gcp": 1.0}
_PATIENCE_S = 60.0  # for the first answer; a service that answered once is asked forever
_ANSWER_S = 2.0
_DRAINED_S = 20.0
_MARGIN_S = 5.0  # the operating system ends every process before it goes itself
_NO_ANSWER = (OSError, HTTPException, ValueError, KeyError, TypeError)
_opener = build_opener(ProxyHandler({}))  # a proxy's machine would answer for itself


def seconds_left(cloud: str, length_s: float) -> float | None:
    """Seconds until the cloud takes this machine; None without a notice.

    AWS announces the time; Google announces that it begins, `length_s` before the end.
    """
    url = SERVICES[cloud]
    if cloud == "gcp":
        answer = _ask(f"{url}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return length_s if answer.strip() == "TRUE" else None
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = {"X-aws-ec2-metadata-token": _ask(f"{url}/latest/api/token", ttl, "PUT")}
    try:
        notice = json.loads(_ask(f"{url}/latest/meta-data/spot/instance-action", token))
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return (datetime.fromisoformat(notice["time"]) - datetime.now(UTC)).total_seconds()


def watch(options: argparse.Namespace) -> bool:
    """Ask until there is a notice, then drain until Ray does; False if no service answers."""
    give_up, end = time.monotonic() + _PATIENCE_S, math.inf
    while True:
        left = None
        try:
            left = seconds_left(options.cloud, options.seconds)
            give_up = math.inf
        except _NO_ANSWER as error:
            if time.monotonic() >= give_up:
                logger.error(
                    "no metadata service of %s answers at %s (%s: %s): this machine will end "
                    "without notice, and its trials will go on from their last checkpoints",
                    *(options.cloud, SERVICES[options.cloud], type(error).__name__, error),
                )
                return False
        if left is not None:
            end = min(end, time.monotonic() + left)
            if drain(options.address, max(0, int(end - time.monotonic() - _MARGIN_S))):
                return True
        time.sleep(EVERY_S[options.cloud])


def drain(address: str, seconds: int) -> bool:
    """Have Ray drain the node that runs here now within these seconds; whether it does."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "its cloud takes the machine away"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command,
            env=os.environ | {"RAY_ADDRESS": address},  # --address does not find the node's id
            capture_output=True,
            text=True,
            timeout=_DRAINED_S,
            check=False,
        )
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        logger.error("cannot drain the node, trying again: %s", problem)
        return False
    logger.info("the cloud has given notice: the node drains within %d s", seconds)
    return True


def may_start(options: argparse.Namespace) -> bool:
    """Whether Ray may start here, as there is no notice."""
    try:
        left = seconds_left(options.cloud, options.seconds)
    except _NO_ANSWER:
        return True
    if left is not None:
        logger.error("Ray is not started: the cloud takes this machine away in %d s", left)
    return left is None


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = Request(url, headers=headers, method=method)  # noqa: S310 - of the cloud, or given
    with _opener.open(request, timeout=_ANSWER_S) as answer:
        text: str = answer.read().decode()
    return text


def main(arguments: list[str]) -> int:
    """Watch, or look once; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cloud", choices=SERVICES)
    parser.add_argument("--address", default="auto", metavar="HOST:PORT", help="the cluster's head")
    parser.add_argument("--once", action="store_true", help="look once; exit with 1 on a notice")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="length of Google's notice (default: 30)"
    )
    options = parser.parse_args(arguments)
    return 0 if (may_start if options.once else watch)(options) else 1


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    sys.exit(main(sys.argv[1:]))
