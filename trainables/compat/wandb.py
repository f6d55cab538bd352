"""W&B's workspaces, tried with wandb-workspaces 0.4."""

from __future__ import annotations

from typing import Any


def set_address(workspace: Any, slug: str) -> None:
    """Give a new view the last part of its address, `?nw=SLUG`, by which it is found again.

    Why: W&B draws one at random, so each call would make one more view. Upstream: not reported.
    """
    workspace._internal_name = f"nw-{slug}-v"
