"""A cloud's notice that it takes a machine away drains the machine's node."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Thread

import pytest
from metadata_service import metadata_service

sys.path.insert(0, str(Path(__file__).parents[3] / "clusters"))

import drain_on_notice

NOTICE_S = 120.0


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_on_notice, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(drain_on_notice, "EVERY_S", {"aws": 0.01, "gcp": 0.01})


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
        monkeypatch.setitem(drain_on_notice.SERVICES, cloud, service.url)
        command = [cloud, "--seconds", str(NOTICE_S)]
        watching = Thread(target=drain_on_notice.main, args=(command,), daemon=True)
        watching.start()
        service.wait_until_asked(3)
        service.status = 503  # for longer than its patience before the first answer
        watching.join(0.3)
        service.status = 200
        assert watching.is_alive()
        assert deadlines == []
        assert drain_on_notice.main([cloud, "--once"]) == 0
        service.announce(NOTICE_S)
        assert drain_on_notice.main([cloud, "--once"]) == 1
        watching.join(10)
    assert len(deadlines) == 3
    assert NOTICE_S - 15 < deadlines[0] <= NOTICE_S - 5
    assert deadlines[0] >= deadlines[-1]
