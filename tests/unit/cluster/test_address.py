"""An address where no cluster answers is refused at once, whatever its form."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest
import ray
from ray.exceptions import RpcError

from trainables.errors import UserError
from tune.cluster import ray_cluster as settings
from tune.cluster.ray_cluster import _check_answers, ray_cluster


@pytest.fixture
def stranger() -> Iterator[str]:
    """A port where something listens that is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusal(address: str) -> str:
    with pytest.raises(UserError) as caught:
        _check_answers(address)
    return str(caught.value)


@pytest.mark.timeout(20)
def test_no_cluster(stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"no Ray cluster answers at {stranger}: what listens" in refusal(stranger)
    assert "--address: no Ray cluster answers at 127.0.0.1:1: [Errno 111]" in refusal("127.0.0.1:1")
    assert "must be auto or HOST:PORT, got somewhere" in refusal("somewhere")
    assert "driven from outside its cluster, got ray://head:10001" in refusal("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "no Ray cluster answers at 127.0.0.1:1" in refusal("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    assert "no Ray cluster answers at auto: none runs on this machine" in refusal("auto")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("no answer"), "no Ray cluster answers at head:6379: no answer; start one"),
        (RpcError("timed out"), "no Ray cluster answers at head:6379: timed out; start one"),
        (
            ValueError("of a bad runtime_env"),
            "the cluster at head:6379 answers, but this command cannot join it: ValueError: of a "
            "bad runtime_env; see `ray status` there",
        ),
    ],
    ids=["no head", "no answer of the head", "another error"],
)
def test_only_a_cluster_that_does_not_answer_is_told_as_none(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**options: object) -> NoReturn:
        raise error

    monkeypatch.setattr(ray, "init", refuses)
    monkeypatch.setattr(settings, "_check_answers", lambda address: None)
    monkeypatch.setattr(settings, "_set_unless_given", lambda variables: None)
    with pytest.raises(UserError) as caught, ray_cluster("head:6379"):
        pass
    assert told in str(caught.value)
