"""What the end of a sweep says about W&B."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import base_record, sweep_config, sweep_record, trial

from analysis.results.wandb_names import views_command
from analysis.sweeps import Sweep
from analysis.tracking.wandb_views import SweepViews
from trainables.records.ledger import Ledger
from trainables.storage.storage import Location
from tune.config.sweep_config import WandbConfig
from tune.tracking import saved_views
from tune.tracking.saved_views import in_wandb
from tune.tracking.wandb_listener import WandbListener
from tune.tracking.wandb_parts import set_aside

FOLDER = Path("sweeps/tiny")
COMMAND = "python -m analysis wandb-views sweeps/tiny"


@pytest.mark.parametrize(
    ("mode", "interrupted", "hints"),
    [
        ("online", False, ["view    URL", "report  URL"]),
        ("online", True, [COMMAND]),
        ("disabled", False, []),
    ],
)
def test_the_end_says_where_runs_are_compared_or_how_they_get_there(
    mode: str, interrupted: bool, hints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = WandbListener(WandbConfig(), FOLDER)
    monkeypatch.setattr(listener._runs, "_chosen_mode", mode)
    monkeypatch.setattr(
        saved_views, "have_views_made", lambda folder: ["view    URL", "report  URL"]
    )
    assert in_wandb(listener, FOLDER, interrupted) == hints


def test_an_offline_sweep_says_how_its_runs_get_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = WandbListener(WandbConfig(), tmp_path)
    monkeypatch.setattr(listener._runs, "_chosen_mode", "offline")
    part = tmp_path / "wandb" / "offline-run-0" / "run-0.wandb"
    part.parent.mkdir(parents=True)
    part.touch()
    upload = f"wandb sync {tmp_path}/wandb/offline-run-*"
    assert in_wandb(listener, tmp_path, False) == [upload, views_command(tmp_path)]
    set_aside(part)
    assert in_wandb(listener, tmp_path, False) == []


@pytest.mark.parametrize(
    ("mode", "part", "hint"),
    [
        ("offline", "offline-run-0", ": W&B's files do not hold"),
        ("offline", "run-0", " with W&B online: it has not confirmed"),
        ("online", "offline-run-0", " with W&B online: it has not confirmed"),
    ],
)
def test_a_run_that_is_not_logged_in_full_needs_w_and_b_online_only_if_it_may_have_a_part(
    mode: str, part: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cut short where a disk was full, and never sent, is logged by any start."""
    listener = WandbListener(WandbConfig(), tmp_path)
    monkeypatch.setattr(listener._runs, "_chosen_mode", mode)
    (tmp_path / "wandb" / part).mkdir(parents=True)
    listener._endings.expect("tiny-0007", "COMPLETE 1 60.0")
    assert listener.upload_hints() == [f"the same command{hint} 1 run in full"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_sweep_that_went_online_says_what_it_left_offline(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = WandbListener(WandbConfig(), tmp_path)
    monkeypatch.setattr(listener._runs, "_chosen_mode", "online")
    monkeypatch.setattr(saved_views, "have_views_made", lambda folder: ["view    URL"])
    parts = [tmp_path / "wandb" / f"offline-run-{n}" / f"run-{n}.wandb" for n in range(2)]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.touch()
    set_aside(parts[0])
    views = views_command(tmp_path) if interrupted else "view    URL"
    upload = f"wandb sync {tmp_path}/wandb/offline-run-*"
    assert in_wandb(listener, tmp_path, interrupted) == [upload, views]
    set_aside(parts[1])
    assert in_wandb(listener, tmp_path, interrupted) == [views]


def test_the_command_for_the_views_names_the_sweep_wherever_it_is_stored(
    location: Location,
) -> None:
    """In an object store, not the folder on this machine that W&B's own files are in."""
    sweep = Sweep(Ledger(location), sweep_record(sweep_config()), base_record(), (trial(),), {})
    assert SweepViews(sweep).describe()[-1] == f"  python -m analysis wandb-views {location}"
