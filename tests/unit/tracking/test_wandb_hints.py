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


def offline_run(folder: Path, number: int, uploaded: bool = False) -> None:
    run = folder / "wandb" / f"offline-run-{number}"
    run.mkdir(parents=True)
    (run / f"run-{number}.wandb").touch()
    if uploaded:
        (run / f"run-{number}.wandb.synced").touch()


@pytest.mark.parametrize(
    ("mode", "interrupted", "waiting", "hints"),
    [
        ("online", False, False, ["VIEW"]),
        ("online", False, True, ["UPLOAD", "VIEW"]),
        ("online", True, True, ["UPLOAD", "COMMAND"]),
        ("offline", False, False, []),
        ("offline", False, True, ["UPLOAD", "COMMAND"]),
        ("disabled", False, False, []),
    ],
)
def test_the_end_says_where_runs_are_compared_or_how_they_get_there(
    mode: str,
    interrupted: bool,
    waiting: bool,
    hints: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = WandbListener(WandbConfig(), tmp_path)
    monkeypatch.setattr(listener._runs, "_chosen_mode", mode)
    monkeypatch.setattr(saved_views, "have_views_made", lambda folder: ["VIEW"])
    offline_run(tmp_path, 0, uploaded=True)
    if waiting:
        offline_run(tmp_path, 1)
    texts = {
        "UPLOAD": f"wandb sync {tmp_path}/wandb/offline-run-*",
        "COMMAND": views_command(tmp_path),
        "VIEW": "VIEW",
    }
    assert in_wandb(listener, tmp_path, interrupted) == [texts[hint] for hint in hints]


def test_the_command_for_the_views_names_the_sweep_wherever_it_is_stored(
    location: Location,
) -> None:
    """In an object store, not the folder on this machine that W&B's own files are in."""
    sweep = Sweep(Ledger(location), sweep_record(sweep_config()), base_record(), (trial(),), {})
    assert SweepViews(sweep).describe()[-1] == f"  python -m analysis wandb-views {location}"
