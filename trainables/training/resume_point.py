"""The checkpoint that a trial resumes from: one for all its workers, chosen by the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from trainables.process.collectives import agreed, is_first_worker
from trainables.training.checkpoint_files import FILES, CheckpointLost, checkpoints, newest_valid

# Together more than the minute for which NFS may show a folder as it was (`acdirmax`).
_PAUSES_S = (1.0, 5.0, 20.0, 40.0)
T = TypeVar("T")


def resume_point(attempt_dirs: Sequence[Path]) -> Path | None:
    """The newest valid checkpoint, None if there is none; every worker calls it.

    Raises:
        OSError: the storage gives errors.
        CheckpointLost: this worker does not see the checkpoint that the first one chose.
    """
    is_first = is_first_worker()
    chosen, its_files = _retried(lambda: _newest(attempt_dirs)) if is_first else (None, None)
    files = agreed(its_files)
    if is_first or files is None:
        return chosen
    return _retried(lambda: _with_files(attempt_dirs, files))


def _newest(attempt_dirs: Sequence[Path]) -> tuple[Path | None, str | None]:
    chosen = newest_valid(attempt_dirs)
    return chosen, (chosen / FILES).read_text() if chosen else None


def _with_files(attempt_dirs: Sequence[Path], files: str) -> Path:
    """The checkpoint with this list of files and digests, which is unique to it."""
    seen = checkpoints(attempt_dirs)
    for checkpoint in seen:
        with suppress(FileNotFoundError):  # damaged
            if (checkpoint / FILES).read_text() == files:
                return checkpoint
    names = ", ".join(checkpoint.name for checkpoint in seen) or "none"
    raise CheckpointLost(
        f"rank {torch.distributed.get_rank()} does not see the checkpoint that rank 0 resumes "
        f"from; below {attempt_dirs[-1].parent} it sees {names}"
    )


def _retried(look: Callable[[], T]) -> T:
    """What `look` returns; called again for a while if the storage fails or shows an old state."""
    for pause in _PAUSES_S:
        with suppress(OSError, CheckpointLost):
            return look()
        time.sleep(pause)
    return look()
