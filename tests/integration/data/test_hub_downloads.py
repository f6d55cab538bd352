"""Each node fetches a model of the hub once, and no credentials are written down anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import pytest
from hub_server import COMMIT, Hub, hub_server
from small_trials import SMALL

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from trainables.storage.locations import resolve

HERE, PROJECT = Path(__file__).parents[1], Path(__file__).parents[3]
MODEL, WEIGHTS = "lab/tiny", "model.safetensors"
FOLDER = Path(resolve("package://trainables/embedded/model"))
LOAD = f"""
from trainables.config import ModelConfig
from trainables.errors import UserError
from trainables.models.loading import fingerprint, load_model, load_tokenizer, local_folder
model = ModelConfig(name="{MODEL}", dtype="float32")
try:
    load_tokenizer(model)
    parameters = sum(parameter.numel() for parameter in load_model(model).parameters())
    print(parameters, fingerprint(model), *sorted(f.name for f in local_folder(model).iterdir()))
except UserError as error:
    print(error)
"""


@pytest.fixture
def token() -> str:
    return f"hf_{uuid4().hex}"


@pytest.fixture
def hub(token: str) -> Iterator[Hub]:
    with hub_server(MODEL, FOLDER, token) as hub:
        yield hub


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Where Ray keeps its logs: by a short path, as its sockets lie there too."""
    folder = Path(mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(hub: Hub, token: str, cache: Path, *command: str, **more: str) -> subprocess.Popen[str]:
    """A process on a node with this cache."""
    ours = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    ours["AWS_SECRET_ACCESS_KEY"] = secret_key(token)  # Tune by itself has Ray write it to its logs
    ours["HF_HUB_DOWNLOAD_TIMEOUT"] = "120"  # a download that is held is not to be asked for again
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | ours | {"PYTHONPATH": str(PROJECT)} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def secret_key(token: str) -> str:
    """Another secret of the command's, as random."""
    return f"aws_{token[::-1]}"


def output_of(process: subprocess.Popen[str]) -> str:
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


def test_who_may_not_read_the_model_is_told_where_the_token_belongs(
    hub: Hub, tmp_path: Path
) -> None:
    said = output_of(start(hub, "hf_of_somebody_else", tmp_path, "-c", LOAD))
    assert hub.refused > 0
    assert f"cannot load {MODEL}: You are trying to access a gated repo" in said
    assert "set HF_TOKEN, where the sweep is started" in said


def sweep_arguments(output: Path, trials: int, at_once: int) -> list[str]:
    settings = (
        *SMALL,
        f"model.name={MODEL}",
        "data.limit=200",
        "eval.retention=[list_max]",
        "eval.ood=[target_longer]",
        "eval.general_text=null",
        "eval.kl_prompts=0",
        "search={lora: {rank: [2, 4, 8, 16], alpha: 8, learning_rate: 1.0e-3}}",
        "sampler=grid",
        f"budget.trials={trials}",
        f"resources.max_concurrent={at_once}",
        "wandb.mode=offline",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    return ["--output-dir", str(output), *words]


def check(output: Path, trials: int) -> None:
    ledger = Ledger(output / "quickstart")
    records = ledger.trials()
    # Of the model that the base was.
    assert {ledger.base().revision, *(r.config.model.revision for r in records)} == {COMMIT}
    assert [record.status for record in records] == [TrialStatus.COMPLETE] * trials


def files_with_secrets(token: str, *folders: Path) -> list[Path]:
    """Which files hold the token or the key; there are some in each folder."""
    secrets = [token.encode(), secret_key(token).encode()]
    found = []
    for folder in folders:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert len(files) > 9, folder
        found += [f for f in files if any(secret in f.read_bytes() for secret in secrets)]
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_each_node_of_a_cluster_fetches_it_once_with_the_token_of_the_command(
    hub: Hub, token: str, tmp_path: Path, sessions: Path
) -> None:
    caches, output = [tmp_path / "cache_1", tmp_path / "cache_2"], tmp_path / "sweeps"
    # The base is evaluated on one node. On the other, two trials begin together.
    hub.hold(WEIGHTS, 1, 3)
    command = [str(HERE / "sweep_from_hub.py"), *map(str, caches), str(sessions)]
    command += sweep_arguments(output, trials=4, at_once=4)
    said = output_of(start(hub, token, tmp_path / "cache_of_the_command", *command))
    check(output, trials=4)
    assert hub.downloads == dict.fromkeys((file.name for file in FOLDER.iterdir()), 2)
    assert hub.looks[WEIGHTS] == 3
    assert len(hub.processes) >= 5
    assert all(list(cache.rglob(WEIGHTS)) for cache in caches)
    assert hub.refused == 0
    assert token not in said
    assert files_with_secrets(token, *caches, output, sessions) == []
