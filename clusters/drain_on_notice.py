"""Drains this machine's Ray node once its cloud has announced that it takes the machine away.

    python drain_on_notice.py {aws,gcp} --address HEAD:6379

A cloud tells of that on the machine alone, to whoever asks there, and Ray does not ask. Drained,
the node has its trials save a checkpoint and go on elsewhere while the machine still stands.
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
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

logger = logging.getLogger(__name__)

Notice = Callable[[], float | None]
Drain = Callable[[int], bool]

_ANSWER_S = 2.0
_DRAINED_S = 20.0
# The last seconds are the operating system's, which ends every process before it goes itself.
_MARGIN_S = 5.0
# Also where something answers that is no metadata service.
_NO_ANSWER = (OSError, HTTPException, ValueError, KeyError, TypeError)
# Through a proxy it would be the proxy's machine that answers.
_opener = build_opener(ProxyHandler({}))


class Cloud(NamedTuple):
    """How a cloud announces it.

    Attributes:
        url: of its metadata service.
        every_s: seconds between two questions, as the cloud recommends or its notice requires.
        notice: given the URL and the length of a notice, seconds that are left; None without one.
    """

    url: str
    every_s: float
    notice: Callable[[str, float], float | None]


class SilentService(Exception):
    """Nothing answers as a cloud's metadata service does."""


def aws_notice(url: str, length_s: float) -> float | None:
    """Seconds until EC2 takes its spot instance back, which it says to the second."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{url}/latest/api/token", ttl, "PUT")
    try:
        notice = _ask(
            f"{url}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
        )
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return (datetime.fromisoformat(json.loads(notice)["time"]) - datetime.now(UTC)).total_seconds()


def gcp_notice(url: str, length_s: float) -> float | None:
    """Seconds until Google takes its spot machine back, which it says as it begins with it."""
    preempted = _ask(f"{url}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return length_s if preempted.strip() == "TRUE" else None


CLOUDS = {
    "aws": Cloud("http://169.254.169.254", 5.0, aws_notice),
    "gcp": Cloud("http://metadata.google.internal", 1.0, gcp_notice),
}


def watch(notice: Notice, drain: Drain, every_s: float, patience_s: float) -> None:
    """Ask until there is a notice, and drain until that is done.

    Args:
        notice: seconds that are left, None without a notice.
        drain: takes the seconds in which the node has to be empty; whether it drains now.
        every_s: seconds between two questions.
        patience_s: seconds to wait for the first answer. What answered once is asked for ever.

    Raises:
        SilentService: there was none.
    """
    give_up, end = time.monotonic() + patience_s, math.inf
    while True:
        try:
            left = notice()
            give_up = math.inf
        except _NO_ANSWER as error:
            left = None
            if time.monotonic() >= give_up:
                raise SilentService(f"{type(error).__name__}: {error}") from error
        if left is not None:
            end = min(end, time.monotonic() + left)
            if drain(max(0, int(end - time.monotonic() - _MARGIN_S))):
                return
        time.sleep(every_s)


def drain_node(address: str, node: str | None, seconds: int) -> bool:
    """Have Ray drain a node; whether it does.

    Which node that is, is found out here and not before: Ray may have been started anew meanwhile,
    and it takes the request for a node that is no more without a word.

    Args:
        address: of the cluster's head.
        node: its id; None for the one that runs here.
        seconds: in which it has to be empty.
    """
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "its cloud takes the machine away"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    command += ["--node-id", node] if node else []
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command,
            env=os.environ | {"RAY_ADDRESS": address},  # --address does not find the node's id
            capture_output=True,
            text=True,
            timeout=_DRAINED_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.error("cannot drain the node, trying again: %s", error)
        return False
    if done.returncode != 0:
        logger.error("cannot drain the node, trying again: %s", done.stderr.strip())
        return False
    logger.info("there is a notice: the node drains, and has %d s for it", seconds)
    return True


def main(arguments: list[str]) -> int:
    """Watch, or look once; returns the exit code."""
    options = _parser().parse_args(arguments)
    cloud = CLOUDS[options.cloud]
    url = options.metadata or cloud.url
    notice = partial(cloud.notice, url.rstrip("/"), options.seconds)
    if options.once:
        return _look(notice)
    drain = partial(drain_node, options.address, options.node_id)
    try:
        watch(notice, drain, options.every or cloud.every_s, options.patience)
    except SilentService as error:
        logger.error(
            "no metadata service of %s answers at %s (%s): this machine's end will come without "
            "notice, and its trials will go on from their last checkpoints",
            options.cloud,
            url,
            error,
        )
        return 1
    return 0


def _look(notice: Notice) -> int:
    """1 where there is a notice, so that Ray is not started where it would soon end, else 0."""
    try:
        left = notice()
    except _NO_ANSWER:
        return 0
    if left is None:
        return 0
    logger.error("the cloud takes this machine away in %d s: Ray shall not start here", left)
    return 1


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = Request(url, headers=headers, method=method)  # noqa: S310 - of the cloud, or given
    with _opener.open(request, timeout=_ANSWER_S) as answer:
        text: str = answer.read().decode()
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Drain this machine's Ray node once its cloud has announced its end."
    )
    parser.add_argument("cloud", choices=CLOUDS)
    parser.add_argument(
        "--address",
        default="auto",
        metavar="HOST:PORT",
        help="the cluster's head (default: of the Ray that was started here last)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="look once, drain nothing, and exit with 1 where there is a notice",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="length of a notice, which AWS tells by itself (default: 30, Google's shortest)",
    )
    parser.add_argument("--metadata", metavar="URL", help="of another metadata service")
    parser.add_argument("--every", type=float, metavar="S", help="seconds between two questions")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to wait for the service's first answer (default: 60)",
    )
    parser.add_argument(
        "--node-id", metavar="HEX", help="of the node, where more than one runs on this machine"
    )
    return parser


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    sys.exit(main(sys.argv[1:]))
