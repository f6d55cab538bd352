"""A cloud's metadata service on this machine's loopback: AWS's and Google's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from loopback import Reply, Request, served


@dataclass
class MetadataService:
    """A service that says when the machine is taken away, as both clouds document it.

    Attributes:
        end: when that is; None without a notice.
        status: of all answers, for a service that is out of order.
        asked: how often it was asked.
    """

    url: str = ""
    end: datetime | None = None
    status: int = 200
    asked: int = 0

    def announce(self, seconds: float) -> None:
        self.end = datetime.now(UTC) + timedelta(seconds=seconds)

    def wait_until_asked(self, times: int, timeout_s: float = 30) -> None:
        """Return once it was asked so many times more."""
        goal, deadline = self.asked + times, time.monotonic() + timeout_s
        while self.asked < goal:
            assert time.monotonic() < deadline, f"asked {self.asked} times, not {goal}"
            time.sleep(0.01)

    def answer(self, request: Request) -> Reply:
        status, text = self._answer(request)
        return Reply(status, text.encode())

    def _answer(self, request: Request) -> tuple[int, str]:
        if self.status != 200:
            return self.status, "out of order"
        match request.method, request.path:
            case "PUT", "/latest/api/token":
                known = "x-aws-ec2-metadata-token-ttl-seconds" in request.headers
                return (200, "token") if known else (400, "Bad Request")
            case "GET", "/latest/meta-data/spot/instance-action":
                if request.headers.get("x-aws-ec2-metadata-token") != "token":
                    return 401, "Unauthorized"
                self.asked += 1
                if self.end is None:
                    return 404, "Not Found"
                return 200, json.dumps({"action": "stop", "time": f"{self.end:%Y-%m-%dT%H:%M:%SZ}"})
            case "GET", "/computeMetadata/v1/instance/preempted":
                if request.headers.get("metadata-flavor") != "Google":
                    return 403, "Forbidden"
                self.asked += 1
                return 200, "FALSE" if self.end is None else "TRUE"
        return 400, "Bad Request"


@contextmanager
def metadata_service() -> Iterator[MetadataService]:
    """A service on a free loopback port until the block ends."""
    service = MetadataService()
    with served(service.answer) as service.url:
        yield service
