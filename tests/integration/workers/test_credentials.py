"""Workers have the driver's credentials, and Ray is sent none of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from trainables.workers import credentials

pytestmark = pytest.mark.usefixtures("cluster")

NAMES = [name for group in credentials._GROUPS for name in group]
SHARED = {
    "HF_TOKEN": "hf",
    "HF_HUB_OFFLINE": "1",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ENDPOINT_URL": "http://store:9000",
    "AWS_REGION": "eu-central-1",
    "HTTPS_PROXY": "http://me:password@proxy:3128",
    "no_proxy": "localhost",
}


@ray.remote(num_cpus=0)
def credentials_of_worker(*owns: dict[str, str]) -> list[dict[str, str]]:
    """What a worker has that had these before, one after the other."""
    found, before = [], dict(os.environ)
    for own in owns:
        for name in NAMES:
            os.environ.pop(name, None)
        os.environ.update(own)
        credentials._asked_for.clear()
        credentials.use_credentials()
        found.append({name: os.environ[name] for name in NAMES if name in os.environ})
    credentials._asked_for.clear()
    os.environ.clear()
    os.environ.update(before)
    return found


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_a_worker_takes_what_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHARED.items():
        monkeypatch.setenv(name, value)
    token, keys = {"HF_TOKEN": "mine"}, {"AWS_ACCESS_KEY_ID": "mine"}
    proxy = {"https_proxy": "http://nearer:3128"}
    without_keys = {n: v for n, v in SHARED.items() if n != "AWS_SECRET_ACCESS_KEY"}
    without_proxies = {n: v for n, v in SHARED.items() if "proxy" not in n.lower()}
    with credentials.sharing_credentials():
        found = ray.get(credentials_of_worker.remote({}, token, keys, proxy))
    assert found == [SHARED, SHARED | token, without_keys | keys, without_proxies | proxy]
    assert ray.get(credentials_of_worker.remote(token)) == [token]  # nothing is shared any more


def test_a_stored_token_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_stored\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with credentials.sharing_credentials():
        (found,) = ray.get(credentials_of_worker.remote({}))
    assert found == {"HF_TOKEN": "hf_stored"}
