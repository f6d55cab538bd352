"""What an error means for the trial that it ended."""

from __future__ import annotations

from pathlib import Path

from trainables.config import TrialConfig
from trainables.disk import disk_full, is_disk_full
from trainables.errors import Diverged, OutOfMemory, TrialError, first_line
from trainables.records import Outcome, TrialStatus


def verdict(trial: TrialConfig, error: BaseException) -> Outcome:
    """What an error means for the trial that it ended."""
    if is_disk_full(error):
        reason = disk_full(Path(trial.output_dir))
        return Outcome(status=TrialStatus.FAILED, reason=reason)
    cause = root_cause(error)
    if isinstance(cause, Diverged):
        return Outcome(status=TrialStatus.DIVERGED, reason=str(cause))
    if isinstance(cause, OutOfMemory):
        return Outcome(status=TrialStatus.OUT_OF_MEMORY, reason=str(cause))
    if isinstance(cause, TrialError):
        return Outcome(status=TrialStatus.FAILED, reason=str(cause))
    return Outcome(status=TrialStatus.FAILED, reason=f"{type(cause).__name__}: {first_line(cause)}")


def root_cause(error: BaseException) -> BaseException:
    """Through Ray's wrappers to the error that a worker raised.

    Of a group's several errors the one that says most: a worker that runs out of memory takes the
    others with it, which then miss their neighbour.
    """
    if isinstance(error, TrialError):
        return error
    if inner := getattr(error, "worker_failures", None):
        return min(map(root_cause, inner.values()), key=_is_of_the_process)
    cause = getattr(error, "cause", None) or error.__cause__
    return root_cause(cause) if isinstance(cause, BaseException) else error


def _is_of_the_process(error: BaseException) -> bool:
    """Whether the error tells of the process or its neighbours rather than of the trial."""
    from trainables.out_of_memory import is_out_of_memory

    return not (isinstance(error, TrialError) or is_out_of_memory(error) or is_disk_full(error))
