"""Comparison views in W&B at the end of a sweep, made by `analysis` in a separate process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from analysis.results.wandb_names import views_command
from trainables.storage.storage import Location
from tune.tracking.wandb_listener import WandbListener

logger = logging.getLogger(__name__)

_PROJECT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 120


def have_views_made(location: Location) -> list[str]:
    """Create or update a sweep's view and report at W&B.

    Returns:
        Where they are; if W&B refuses or does not answer, the command to run later.
    """
    paths = [str(_PROJECT), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            # -P: modules in the user's folder must not shadow ours.
            [sys.executable, "-P", "-m", "analysis", "wandb-views", str(location)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("no views in W&B: %s", getattr(error, "stderr", None) or repr(error))
        return [views_command(location)]
    return done.stdout.splitlines()


def in_wandb(listener: WandbListener, location: Location, interrupted: bool) -> list[str]:
    """Where to compare the runs, or how to upload them; after an interrupt no views are made."""
    upload = listener.upload_hints()
    if listener.is_online() and not interrupted:
        return [*upload, *have_views_made(location)]
    return [*upload, views_command(location)] if upload or listener.is_online() else []
