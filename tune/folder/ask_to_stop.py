"""Asks a sweep's driver to end one trial."""

from __future__ import annotations

from trainables.errors import Fault, UserError
from trainables.records.ledger import Ledger, cannot_write
from trainables.records.schema import TrialRecord, TrialStatus
from trainables.storage.storage import Location
from tune.folder.sweep_folder import cannot_read


def ask_to_stop(location: Location, number: int) -> str:
    """Ask the sweep's driver to end a trial.

    Returns:
        A message that says what happens next.

    Raises:
        UserError: there is no such trial, it has ended, or the folder cannot be read or written to.
    """
    try:
        ledger = Ledger(location)
        record = _record(ledger, number)
    except (OSError, ValueError) as error:
        raise cannot_read(location, error) from error
    if record.status is not TrialStatus.RUNNING:
        why = f", {record.reason}" if record.reason else ""
        rule = f"trial {number} has ended already: {record.status.in_words}{why}"
        raise _fault(rule, "name one that runs")
    try:
        ledger.storage.write(ledger.folder.name(ledger.folder.stop_request(number)), b"")
    except OSError as error:
        raise cannot_write(location, error) from error
    return (
        f"asked: trial {number} ends after its step or the evaluation that it is in; if it waits, "
        "once it has its room; if no driver runs the sweep, at the next start. --retry-failed "
        "takes it up again."
    )


def _record(ledger: Ledger, number: int) -> TrialRecord:
    if not ledger.exists():
        rule = f"there is no sweep at {ledger.folder.location}"
        raise _fault(rule, "give its sweep file, name and --output-dir as it was started with")
    try:
        return ledger.trial(number)
    except FileNotFoundError:
        trials = ledger.folder.place(ledger.folder.trials)
        rule = f"no trial {number} has begun in {ledger.folder.location}"
        raise _fault(rule, f"{trials} has a folder of each trial's number") from None


def _fault(rule: str, remedy: str) -> UserError:
    return UserError([Fault("--stop-trial", rule, remedy)])
