"""A cloud's metadata service on this machine's loopback, for the tests: AWS's and Google's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from loopback import Reply, Request, served


@dataclass
class MetadataService:
    """What it says, and what it was asked.

    Attributes:
        end: when the cloud takes the machine away; None while it does not mean to.
        status: of all answers, for a service that is out of order.
        asked: how often whether the machine is taken away.
    """

    url: str = ""
    end: datetime | None = None
    status: int = 200
    asked: int = 0
    _tokens: set[str] = field(default_factory=set)

    def announce(self, seconds: float) -> None:
        """Give the machine notice."""
        self.end = datetime.now(UTC) + timedelta(seconds=seconds)

    def wait_until_asked(self, times: int, timeout_s: float = 30) -> None:
        """Return once it was asked so many times more."""
        goal, deadline = self.asked + times, time.monotonic() + timeout_s
        while self.asked < goal:
            assert time.monotonic() < deadline, f"asked {self.asked} times, not {goal}"
            time.sleep(0.01)

    def answer(self, request: Request) -> Reply:
        """As both clouds document it."""
        status, text = self._answer(request.method, request.path, request.headers)
        return Reply(status, text.encode())

    def _answer(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        if self.status != 200:
            return self.status, "out of order"
        match method, path:
            case "PUT", "/latest/api/token" if "x-aws-ec2-metadata-token-ttl-seconds" in headers:
                self._tokens.add(token := uuid4().hex)
                return 200, token
            case "GET", "/latest/meta-data/spot/instance-action":
                if headers.get("x-aws-ec2-metadata-token") not in self._tokens:
                    return 401, "Unauthorized"
                self.asked += 1
                if self.end is None:
                    return 404, "Not Found"
                when = f"{self.end:%Y-%m-%dT%H:%M:%SZ}"
                return 200, json.dumps({"action": "terminate", "time": when})
            case "GET", "/computeMetadata/v1/instance/preempted":
                if headers.get("metadata-flavor") != "Google":
                    return 403, "Missing required header: Metadata-Flavor"
                self.asked += 1
                return 200, "FALSE" if self.end is None else "TRUE"
        return 400, "Bad Request"


@contextmanager
def metadata_service() -> Iterator[MetadataService]:
    """A service on a free loopback port until the block ends."""
    service = MetadataService()
    with served(service.answer) as service.url:
        yield service
