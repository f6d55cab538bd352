"""What an error means for the trial that it ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ray.exceptions import (
    ActorUnschedulableError,
    OutOfMemoryError,
    RayActorError,
    RuntimeEnvSetupError,
)

from trainables.config import TrialConfig
from trainables.errors import Diverged, OutOfMemory, TrialError, UserError, as_reason, error_text
from trainables.records.schema import Outcome, TrialStatus
from trainables.storage.disk import disk_full, is_disk_full
from trainables.storage.object_storage import is_store_out
from trainables.training.checkpoint_files import CheckpointLost
from trainables.training.reporter import StopTrial

# The process that was to answer is gone, by itself or killed for its node's memory, or its node
# could not set it up or is gone.
LOST = (RayActorError, OutOfMemoryError, RuntimeEnvSetupError, ActorUnschedulableError)


def verdict(trial: TrialConfig, error: BaseException) -> Outcome:
    """What an error means for the trial that it ended.

    Raises:
        OSError: its object store is out. The trial then ends like one whose process has died, and
            goes on in its next attempt, unless it made no progress.
        CheckpointLost: the checkpoint to resume from is gone. It ends likewise.
    """
    if is_disk_full(error):  # it resumes once there is space
        reason = disk_full(error, Path(trial.output_dir))
        return Outcome(status=TrialStatus.RUNNING, reason=reason)
    cause = root_cause(error)
    if is_store_out(cause) or isinstance(cause, CheckpointLost):
        raise cause
    if isinstance(cause, Diverged):
        return Outcome(status=TrialStatus.DIVERGED, reason=as_reason(str(cause)))
    if isinstance(cause, OutOfMemory):
        return Outcome(status=TrialStatus.OUT_OF_MEMORY, reason=as_reason(str(cause)))
    if isinstance(cause, (TrialError, UserError)):
        return Outcome(status=TrialStatus.FAILED, reason=as_reason(str(cause)))
    return Outcome(status=TrialStatus.FAILED, reason=error_text(cause))


def root_cause(error: BaseException) -> BaseException:
    """Unwrap Ray's and other wrappers down to the first error, or one of ours that explains it."""
    if isinstance(error, (TrialError, UserError)):
        return error
    cause = getattr(error, "cause", None) or error.__cause__
    return root_cause(cause) if isinstance(cause, BaseException) else error


def most_telling(errors: Sequence[BaseException]) -> BaseException:
    """The most informative of the errors of a group's workers; the first among equals.

    A worker that runs out of memory, or whose process dies, makes the others fail after it.
    """
    return min(errors, key=_distance)


def _distance(error: BaseException) -> int:
    """Rank an error by its distance from the trial: its own 0, its process's 1, a neighbour's 2."""
    from trainables.process.out_of_memory import is_out_of_memory

    is_own = isinstance(error, (StopTrial, TrialError, UserError))
    if is_own or is_out_of_memory(error) or is_disk_full(error):
        return 0
    return 1 if isinstance(error, LOST) else 2
