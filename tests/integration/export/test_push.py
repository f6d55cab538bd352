"""`export --push`: what reaches the hub, and what is said where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from builders import record_sweep, scores, trial
from push_server import push_server
from safetensors.numpy import load, save_file

from trainables.methods.lora import Lora
from trainables.records.ledger import Ledger

if TYPE_CHECKING:
    from push_server import PushHub

ROOT = Path(__file__).parents[3]
TOKEN = "hf_only_the_hub_may_know"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """One LoRA trial, which is recommended at strength 0.5."""
    folder = tmp_path / "tiny"
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    weights.mkdir(parents=True)
    tensors = {"q.lora_A.weight": np.ones((2, 3)), "q.lora_B.weight": np.ones((3, 2))}
    save_file(tensors, weights / "adapter_model.safetensors")
    (weights / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 2}')
    method = Lora(rank=2, alpha=8.0)
    record = trial(0, scores(0.9, 0.3), method=method, weights_dir=str(weights))
    assert record.last is not None
    point = {"strength": 0.5, "metrics": scores(0.9, 0.1)}
    record_sweep(folder, record.after(record.last.model_copy(update=point)))
    return folder


def push(sweep: Path, repository: str, endpoint: str, token: str, *more: str) -> tuple[int, str]:
    """The command's exit code and all that it printed."""
    own = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    home = {"HF_HOME": str(sweep.parent / "hub"), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "analysis", "export", str(sweep), "--push", repository, *more]
    done = subprocess.run(
        command,
        env=os.environ | own | home,
        cwd=sweep.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_winner_is_pushed_with_its_card_and_its_strength(sweep: Path) -> None:
    with push_server(TOKEN) as hub:
        code, said = push(sweep, "me/tuned", hub.url, TOKEN)
        assert code == 0, said
        hub.files["me/tuned"] |= {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"mine"}
        code, said = push(sweep, "me/tuned", hub.url, TOKEN, "--strength", "1", "--to", "kept")
        assert code == 0, said
        assert hub.private == {"me/tuned": True}
        assert hub.messages["me/tuned"] == [
            "tiny, trial 0 at strength 0.5 (lora, rank 2, alpha 8, lr 3.2e-04)",
            "tiny, trial 0 (lora, rank 2, alpha 8, lr 3.2e-04)",
        ]
        assert_same(hub, sweep.parent / "kept")
        assert f"{hub.url}/me/tuned/commit/" in said
        assert TOKEN not in said
        assert push(sweep, "me/open", hub.url, TOKEN, "--public")[0] == 0
        assert not hub.private["me/open"]
        pushed = load(hub.files["me/open"]["adapter_model.safetensors"])
        assert (pushed["q.lora_B.weight"] == 0.5).all()
        assert b"at strength 0.5" in hub.files["me/open"]["README.md"]
    kept = [path for path in sweep.parent.rglob("*") if path.is_file()]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]


def assert_same(hub: PushHub, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.files["me/tuned"] == files | {"LICENSE": b"mine"}
    assert "README.md" in files


@pytest.mark.parametrize(
    ("repository", "token", "facts"),
    [
        ("tuned", TOKEN, ["--push", "USER/NAME", "'tuned'"]),
        ("me/a--b", TOKEN, ["--push", "USER/NAME", "'me/a--b'"]),
        ("me/tuned", "hf_wrong", ["--push", "refused me/tuned", "401", "HF_TOKEN"]),
        ("else/tuned", TOKEN, ["--push", "refused else/tuned", "403"]),
        ("me/tuned", "", ["--push", "token", "got none", "hf auth login"]),
        ("me/tuned", "hf_ü", ["--push", "token", "letters"]),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    sweep: Path, repository: str, token: str, facts: list[str]
) -> None:
    with push_server(TOKEN) as hub:
        code, said = push(sweep, repository, hub.url, token, "--strength", "1")
    assert code == 2
    assert all(fact in said for fact in facts), said
    assert said.count("\n") == 1
    assert "hf_" not in said


def test_a_refused_card_is_one_line_with_the_hub_s_reason(sweep: Path) -> None:
    with push_server(TOKEN) as hub:
        hub.card_error = '"base_model" is no id'
        code, said = push(sweep, "me/tuned", hub.url, TOKEN, "--strength", "1")
    assert code == 2, said
    assert '"base_model" is no id; try again later, or export with --to' in said
    assert said.count("\n") == 1


def test_a_hub_that_cannot_be_reached_is_named(sweep: Path) -> None:
    code, said = push(sweep, "me/tuned", "http://127.0.0.1:9", TOKEN, "--strength", "1")
    assert code == 2, said
    assert "--push: cannot reach http://127.0.0.1:9" in said
    code, said = push(sweep, "me/tuned", "127.0.0.1:9", TOKEN)
    assert (code, "HF_ENDPOINT: must be the address of a hub" in said) == (2, True), said
