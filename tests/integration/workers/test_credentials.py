"""Workers have the driver's credentials, and Ray is sent none of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray

from trainables.workers import credentials

NAMES = [name for together in credentials._TOGETHER for name in together]
OF_DRIVER = {
    "HF_TOKEN": "hf",
    "HF_HUB_OFFLINE": "1",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ENDPOINT_URL": "http://store:9000",
    "AWS_REGION": "eu-central-1",
    "HTTPS_PROXY": "http://me:password@proxy:3128",
    "no_proxy": "localhost",
}


@ray.remote(num_cpus=0, max_calls=1)  # its environment is of no use to others
def credentials_of_worker(own: dict[str, str]) -> dict[str, str]:
    for name in NAMES:
        os.environ.pop(name, None)
    os.environ.update(own)
    credentials._asked_for.clear()
    credentials.use_credentials()
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, OF_DRIVER),
        ({"HF_TOKEN": "mine"}, OF_DRIVER | {"HF_TOKEN": "mine"}),
        (
            {"AWS_ACCESS_KEY_ID": "mine", "AWS_SESSION_TOKEN": "mine"},
            {name: value for name, value in OF_DRIVER.items() if name != "AWS_SECRET_ACCESS_KEY"}
            | {"AWS_ACCESS_KEY_ID": "mine", "AWS_SESSION_TOKEN": "mine"},
        ),
        (
            {"https_proxy": "http://nearer:3128"},
            {name: value for name, value in OF_DRIVER.items() if "proxy" not in name.lower()}
            | {"https_proxy": "http://nearer:3128"},
        ),
    ],
    ids=["none of its own", "a token of its own", "keys of its own", "a proxy of its own"],
)
def test_a_worker_takes_what_it_does_not_have(
    cluster: None, monkeypatch: pytest.MonkeyPatch, own: dict[str, str], expected: dict[str, str]
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in OF_DRIVER.items():
        monkeypatch.setenv(name, value)
    with credentials.sharing_credentials():
        assert ray.get(credentials_of_worker.remote(own)) == expected
    assert ray.get(credentials_of_worker.remote(own)) == own  # nothing is shared any more


@pytest.mark.parametrize("unwanted", [False, True])
def test_a_token_that_is_stored_is_shared_unless_that_is_forbidden(
    cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unwanted: bool
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text("hf_stored\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", unwanted)
    with credentials.sharing_credentials():
        found = ray.get(credentials_of_worker.remote({}))
    assert found == ({} if unwanted else {"HF_TOKEN": "hf_stored"})


def test_tune_sends_no_environment_with_a_trial(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.tune.execution.class_cache import _ActorClassCache

    class Trial:
        def environment(self) -> tuple[str, Any]:
            sent = ray.get_runtime_context().get_runtime_env_string()
            return sent, os.environ.get("MALLOC_TRIM_THRESHOLD_")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    trial = _ActorClassCache().get(Trial).options(num_cpus=0).remote()
    assert ray.get(trial.environment.remote()) == ("{}", str(256 << 20))
