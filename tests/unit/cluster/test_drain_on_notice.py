"""A cloud's notice that a machine is taken away becomes a drained node, whatever the cloud."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from metadata_service import MetadataService, metadata_service

sys.path.insert(0, str(Path(__file__).parents[3] / "clusters"))

import drain_on_notice
from drain_on_notice import CLOUDS, SilentService, watch

NOTICE_S = 120.0


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with metadata_service() as service:
        yield service


@pytest.fixture
def nobody() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class Watching:
    """`watch` in a thread, with a drain that keeps its deadlines and succeeds at last."""

    def __init__(self, cloud: str, url: str, refusals: int = 0, patience_s: float = 60) -> None:
        self.deadlines: list[int] = []
        self.error: SilentService | None = None
        self._notice, self._url = CLOUDS[cloud].notice, url
        self._refusals, self._patience_s = refusals, patience_s
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def is_over(self, timeout_s: float = 0) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _watch(self) -> None:
        try:
            watch(self._ask, self._drain, every_s=0.01, patience_s=self._patience_s)
        except SilentService as error:
            self.error = error

    def _ask(self) -> float | None:
        return self._notice(self._url, NOTICE_S)

    def _drain(self, seconds: int) -> bool:
        self.deadlines.append(seconds)
        return len(self.deadlines) > self._refusals


@pytest.mark.parametrize("cloud", CLOUDS)
class TestWatch:
    def test_nothing_is_drained_until_there_is_a_notice(
        self, cloud: str, service: MetadataService
    ) -> None:
        watching = Watching(cloud, service.url)
        service.wait_until_asked(5)
        assert watching.deadlines == []
        assert not watching.is_over()
        service.announce(NOTICE_S)
        assert watching.is_over(timeout_s=10)
        (deadline,) = watching.deadlines
        assert NOTICE_S - 15 < deadline <= NOTICE_S - 5  # the last are the operating system's
        assert watching.error is None

    def test_what_could_not_be_drained_is_drained_again_by_the_same_time(
        self, cloud: str, service: MetadataService
    ) -> None:
        service.announce(NOTICE_S)
        watching = Watching(cloud, service.url, refusals=150)  # 1.5 s of them at least
        assert watching.is_over(timeout_s=60)
        first, *_, last = watching.deadlines
        assert len(watching.deadlines) == 151
        assert first > last > 0

    def test_a_service_that_is_out_of_order_for_a_while_is_asked_again(
        self, cloud: str, service: MetadataService
    ) -> None:
        watching = Watching(cloud, service.url, patience_s=0.1)
        service.wait_until_asked(2)
        service.status = 503
        assert not watching.is_over(timeout_s=0.3)
        service.status = 200
        service.announce(NOTICE_S)
        assert watching.is_over(timeout_s=10)
        assert len(watching.deadlines) == 1

    def test_it_ends_where_there_is_no_such_service(self, cloud: str, nobody: str) -> None:
        watching = Watching(cloud, nobody, patience_s=0.2)
        assert watching.is_over(timeout_s=10)
        assert "refused" in str(watching.error)
        assert watching.deadlines == []

    def test_a_notice_that_comes_late_leaves_no_time_rather_than_less(
        self, cloud: str, service: MetadataService
    ) -> None:
        service.announce(-10)
        notice = CLOUDS[cloud].notice
        deadlines: list[int] = []

        def drain(seconds: int) -> bool:
            deadlines.append(seconds)
            return True

        watch(lambda: notice(service.url, 1.0), drain, every_s=0.01, patience_s=60)
        assert deadlines == [0]


@pytest.mark.parametrize("cloud", CLOUDS)
class TestCommand:
    def test_it_says_once_that_nobody_answers(
        self, cloud: str, nobody: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        command = [cloud, "--metadata", nobody, "--patience", "0.2", "--every", "0.01"]
        assert drain_on_notice.main(command) == 1
        (said,) = [r.getMessage() for r in caplog.records if r.name == "drain_on_notice"]
        assert f"no metadata service of {cloud} answers at {nobody}" in said

    def test_once_tells_whether_ray_may_start_here(
        self, cloud: str, service: MetadataService, nobody: str
    ) -> None:
        assert drain_on_notice.main([cloud, "--once", "--metadata", nobody]) == 0
        look = [cloud, "--once", "--metadata", service.url]
        assert drain_on_notice.main(look) == 0
        service.announce(NOTICE_S)
        assert drain_on_notice.main(look) == 1

    def test_no_proxy_answers_for_the_machine(
        self, cloud: str, service: MetadataService, nobody: str
    ) -> None:
        service.announce(NOTICE_S)
        # As a process: proxies are looked up when it starts.
        command = [sys.executable, drain_on_notice.__file__, cloud, "--once"]
        environment = os.environ | {"http_proxy": nobody, "no_proxy": ""}
        looked = subprocess.run([*command, "--metadata", service.url], env=environment, check=False)
        assert looked.returncode == 1


def test_a_drain_that_fails_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    no_head = "no head at all"
    assert not drain_on_notice.drain_node(no_head, "0" * 56, 10)
    assert "cannot drain the node, trying again" in caplog.text
