"""Whether a sweep may run in a folder: looked at before anything is written there."""

from __future__ import annotations

import os
from pathlib import Path

from trainables.errors import Fault, UserError
from trainables.ledger import Ledger, cannot_write

_MOST_NAMED = 3


def check_sweep_folder(folder: Path) -> bool:
    """See whether the folder can be written to, and is new or holds a sweep that can be read.

    Returns:
        Whether there is no such folder yet.

    Raises:
        UserError: all that stands against it; nothing was changed.
    """
    _check_writable(folder)
    if not folder.exists():
        return True
    ledger = Ledger(folder)
    if ledger.exists():
        ledger.check()
    else:
        _check_fresh(ledger)
    return False


def _check_writable(folder: Path) -> None:
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise cannot_write(folder, f"{existing} is no folder")
    # Asks the kernel, which also knows of read-only mounts and immutable folders.
    if not os.access(existing, os.W_OK | os.X_OK):
        raise cannot_write(folder, f"{existing} is read-only")
    if folder.exists() and not os.access(folder, os.R_OK):
        raise cannot_write(folder, "it cannot be listed")


def _check_fresh(ledger: Ledger) -> None:
    """Without a `sweep.json` there is at most what a driver leaves that was killed at once."""
    folder = ledger.folder
    early = {folder.log.name, folder.base.name}
    foreign = sorted(
        path.name
        for path in folder.root.iterdir()
        if path.name not in early and not path.name.lstrip(".").startswith(("lock.", "sweep.json."))
    )
    if not foreign:
        return
    named = ", ".join(foreign[:_MOST_NAMED]) + (", ..." if len(foreign) > _MOST_NAMED else "")
    rule = f"{folder.root} holds no sweep ({folder.sweep_json.name} is missing) but {named}"
    raise UserError(
        [Fault("--output-dir", rule, "give an empty or another folder, or the sweep another name")]
    )
