"""A cloud's notice that it takes a machine away drains the machine's node."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from threading import Thread

import pytest
from metadata_service import metadata_service

sys.path.insert(0, str(Path(__file__).parents[3] / "clusters"))

import drain_on_notice

NOTICE_S = 120.0


@pytest.mark.parametrize("cloud", drain_on_notice.SERVICES)
def test_a_node_is_drained_on_notice_until_ray_does_it(
    cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[int] = []

    def drain(address: str, seconds: int) -> bool:
        deadlines.append(seconds)
        return len(deadlines) == 3

    monkeypatch.setattr(drain_on_notice, "drain", drain)
    with metadata_service() as service:
        command = [cloud, "--metadata", service.url, "--every", "0.01", "--patience", "0.1"]
        command += ["--seconds", str(NOTICE_S)]
        watching = Thread(target=drain_on_notice.main, args=(command,), daemon=True)
        watching.start()
        service.wait_until_asked(3)
        service.status = 503  # for longer than its patience before the first answer
        watching.join(0.3)
        service.status = 200
        assert watching.is_alive()
        assert deadlines == []
        assert drain_on_notice.main([cloud, "--once", "--metadata", service.url]) == 0
        service.announce(NOTICE_S)
        assert drain_on_notice.main([cloud, "--once", "--metadata", service.url]) == 1
        watching.join(10)
    assert len(deadlines) == 3
    assert NOTICE_S - 15 < deadlines[0] <= NOTICE_S - 5
    assert deadlines[0] >= deadlines[-1]


def test_a_machine_without_a_service_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    url = "http://127.0.0.1:1"
    command = ["aws", "--metadata", url, "--patience", "0.1", "--every", "0.01"]
    assert drain_on_notice.main(command) == 1
    assert caplog.text.count(f"no metadata service of aws answers at {url}") == 1
    assert drain_on_notice.main([*command, "--once"]) == 0


def test_a_late_notice_leaves_no_time_and_a_failing_drain_is_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not drain_on_notice.drain("no head at all", 10)
    assert "cannot drain the node, trying again" in caplog.text
    deadlines: list[int] = []
    monkeypatch.setattr(drain_on_notice, "drain", lambda _, seconds: not deadlines.append(seconds))
    with metadata_service() as service:
        service.announce(-10)
        options = {"cloud": "aws", "metadata": service.url, "seconds": 30.0, "every": 0.01}
        assert drain_on_notice.watch(argparse.Namespace(**options, address="", patience=1.0))
    assert deadlines == [0]
