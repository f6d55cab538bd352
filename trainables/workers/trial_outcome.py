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
from trainables.errors import Diverged, OutOfMemory, TrialError, UserError, as_reason, named
from trainables.records.schema import Outcome, TrialStatus
from trainables.storage.disk import disk_full, is_disk_full
from trainables.storage.object_storage import is_store_out
from trainables.training.checkpoint_files import CheckpointLost
from trainables.training.reporter import StopTrial

# The process that was to answer is gone, by itself or killed by Ray as its node ran out of memory;
# or it never was, as its node could not set it up or is no more.
LOST = (RayActorError, OutOfMemoryError, RuntimeEnvSetupError, ActorUnschedulableError)


def verdict(trial: TrialConfig, error: BaseException) -> Outcome:
    """What an error means for the trial that it ended.

    Raises:
        OSError: its object store is out. Then the trial ends like one whose process has died: it
            goes on in its next attempt from what it has published, but not for ever if it comes no
            further, as where a single node does not reach the store.
        CheckpointLost: what it was to go on from is gone. It ends likewise.
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
    return Outcome(status=TrialStatus.FAILED, reason=named(cause))


def root_cause(error: BaseException) -> BaseException:
    """Unwrap Ray's and other wrappers down to the error that says what happened.

    It is the one that was raised first, unless one of ours tells of that in the user's words.
    """
    if isinstance(error, (TrialError, UserError)):
        return error
    cause = getattr(error, "cause", None) or error.__cause__
    return root_cause(cause) if isinstance(cause, BaseException) else error


def most_telling(errors: Sequence[BaseException]) -> BaseException:
    """The most informative of the errors of a group's workers; the first among equals.

    A worker that runs out of memory, or whose process dies, takes the others with it, which then
    fail for want of their neighbour.
    """
    return min(errors, key=_distance)


def _distance(error: BaseException) -> int:
    """Rank an error by its distance from the trial: its own 0, its process's 1, a neighbour's 2."""
    from trainables.process.out_of_memory import is_out_of_memory

    of_the_trial = isinstance(error, (StopTrial, TrialError, UserError))
    if of_the_trial or is_out_of_memory(error) or is_disk_full(error):
        return 0
    return 1 if isinstance(error, LOST) else 2
