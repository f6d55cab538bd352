"""Checks that a sweep may run in a folder, before anything is written there."""

from __future__ import annotations

import os
from pathlib import Path

from trainables.errors import Fault, UserError
from trainables.records.ledger import Ledger, cannot_write
from trainables.records.record_paths import SweepFolder
from trainables.storage.storage import Location

_MOST_NAMED = 3


def check_sweep_folder(location: Location) -> bool:
    """Check that the folder is writable and either new or holds a readable sweep.

    Returns:
        Whether there is no such folder yet.

    Raises:
        UserError: the sweep cannot run there; nothing was changed.
    """
    if isinstance(location, Path):
        _check_writable(location)
    try:
        ledger = Ledger(location)
        if ledger.exists():
            ledger.check()
            if ledger.has_base():
                ledger.base_items()  # each trial reads them
            return False
        names = ledger.storage.children("")
        _check_fresh(ledger.folder, names)
    except (OSError, ValueError) as error:  # the latter also pyarrow's
        raise cannot_read(location, error) from error
    return not (location.exists() if isinstance(location, Path) else names)


def _check_writable(folder: Path) -> None:
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise cannot_write(folder, f"{existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise cannot_write(folder, f"{existing} is read-only")


def _check_fresh(folder: SweepFolder, names: list[str]) -> None:
    """A folder without `sweep.json` may only hold what a driver that was killed early leaves."""
    early = {folder.log.name, folder.base.name, folder.warm_start.name, folder.warm_start.stem}
    ours = ("lock.", "sweep.json.", "warm_start.jsonl.", "seen_by_nodes.")
    foreign = [n for n in names if n not in early and not n.lstrip(".").startswith(ours)]
    if not foreign:
        return
    named = ", ".join(foreign[:_MOST_NAMED]) + (", ..." if len(foreign) > _MOST_NAMED else "")
    rule = f"{folder.location} holds no sweep ({folder.sweep_json.name} is missing) but {named}"
    raise UserError(
        [Fault("--output-dir", rule, "give an empty or another folder, or the sweep another name")]
    )


def cannot_read(location: Location, error: Exception) -> UserError:
    """The error for a sweep folder that cannot be read."""
    remedy = "see that it exists and that this machine may read it"
    return UserError([Fault("--output-dir", f"cannot read {location}: {error}", remedy)])
