"""What the end of a sweep says about W&B."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune import wandb_views
from tune.command_line import _wandb_hints
from tune.sweep_config import WandbConfig
from tune.wandb_listener import WandbListener

FOLDER = Path("sweeps/tiny")
COMMAND = "python -m analysis wandb-views sweeps/tiny"


@pytest.mark.parametrize(
    ("mode", "interrupted", "hints"),
    [
        ("online", False, ["view    URL", "report  URL"]),
        ("online", True, [COMMAND]),
        ("offline", False, ["wandb sync sweeps/tiny/wandb/offline-run-*", COMMAND]),
        ("disabled", False, []),
    ],
)
def test_the_end_says_where_runs_are_compared_or_how_they_get_there(
    mode: str, interrupted: bool, hints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = WandbListener(WandbConfig(), FOLDER)
    monkeypatch.setattr(listener, "_chosen_mode", mode)
    monkeypatch.setattr(wandb_views, "make_views", lambda folder: ["view    URL", "report  URL"])
    assert _wandb_hints(listener, FOLDER, interrupted) == hints
