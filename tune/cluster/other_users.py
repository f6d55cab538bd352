"""Keeps other users of this machine out of a Ray cluster that a command starts on it.

Its ports listen on all addresses, and Ray lets everyone write to the folder of its sockets, logs
and code. Those who reach either run code as the sweep's user.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from trainables.errors import Fault, UserError

FOLDER = "RAY_TMPDIR"
_TOKEN, _TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def keep_others_out() -> None:
    """Give the cluster that starts next a token and a folder that are this user's alone.

    Ray itself would write its token to the user's home, for everyone to read. Variables that the
    user has set are left as they are.

    Raises:
        UserError: another user has made the folder.
    """
    if not {_TOKEN, _TOKEN_FILE} & os.environ.keys():
        os.environ[_TOKEN] = secrets.token_hex(32)
    if FOLDER not in os.environ:
        os.environ[FOLDER] = str(_own_folder(Path("/tmp")))  # noqa: S108 - checked there


def _own_folder(shared: Path) -> Path:
    """A folder of this user in one that all users share, closed to them; its name is short.

    Raises:
        UserError: what has its name there belongs to another user, or is no folder.
    """
    folder = shared / f"ray-of-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        rule = f"the folder for its sockets and logs must be this user's own, {folder} is not"
        raise UserError([Fault("Ray", rule, f"set {FOLDER} to a folder with a short name")])
    folder.chmod(0o700)
    return folder
