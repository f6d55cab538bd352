"""How the unit tests run."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the client is imported, which reads it then

import pytest
from hypothesis import settings

from trainables.storage.storage import Location

sys.path.insert(0, str(Path(__file__).parents[1]))

from google_store import google_store
from object_store import reserve, s3_server

# A busy machine makes a slow example, not a wrong one; and the same code passes each time or never.
settings.register_profile("shared", deadline=None, derandomize=True)
settings.load_profile("shared")


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_collect() -> None:
    """Keep what earlier files have loaded, such as torch, out of each collection of garbage."""
    gc.freeze()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The embedded model's."""
    from transformers import AutoTokenizer

    folder = Path(__file__).parents[2] / "trainables" / "embedded" / "model"
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Address of a bucket of a real S3 server."""
    with s3_server(reserve()) as address:
        yield address


@pytest.fixture(params=["disk", "s3", "google"])
def location(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Location]:
    """A place for a sweep that does not exist yet, on each kind of storage."""
    if request.param == "disk":
        yield tmp_path / "sweep"
        return
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/{uuid4().hex}/sweep"
        return
    with google_store({}) as address:
        yield f"{address}/sweep"
