"""The files that W&B keeps of a run: each start of the command leaves one more part of it.

W&B's own reader reads them, the one that `wandb sync` uses, so what counts as logged here is what
will be uploaded: of a part whose driver was killed that is what had been flushed.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from wandb.util import get_core_path

_READER_SECONDS = 60


def parts_of(folder: Path, run_id: str) -> list[Path]:
    """The parts of a run below a sweep's folder."""
    return sorted(folder.glob(f"wandb/*run-*/run-{run_id}.wandb"))


def newest_step(parts: list[Path]) -> int:
    """The last step that any of the parts holds; -1 where none does.

    Raises:
        subprocess.SubprocessError: W&B's reader fails.
    """
    return max((step for part in parts for step in steps_in(part)), default=-1)


def steps_in(part: Path) -> list[int]:
    """The steps that a part holds, in its order; a torn end is left out."""
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
    printed = subprocess.run(  # noqa: S603 - W&B's own binary on our own file
        [*command, "-run-file", str(part)],
        check=True,
        capture_output=True,
        text=True,
        timeout=_READER_SECONDS,
    ).stdout
    records = map(json.loads, printed.splitlines())
    return [int(r["history"]["item"]["_step"]) for r in records if r["type"] == "history"]
