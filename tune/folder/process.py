"""The identity of a process, by which another process sees whether it is alive."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from trainables.config import Frozen

_PROC = Path("/proc")
_START_TIME = 19  # field 22 of /proc/PID/stat, as an index after the command's name


class Process(Frozen):
    """A process, unique across machines, reboots and reused process ids.

    Attributes:
        host: name of the machine.
        space: boot and process-id namespace; ids are comparable only within one, so that two
            containers with the same name are not confused. Empty where /proc shows neither.
        started: start time as the system counts it; distinguishes a reused id.
    """

    host: str
    space: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        """This process."""
        pid = os.getpid()
        return cls(host=platform.node(), space=_space(), pid=pid, started=_started(pid))

    def is_gone(self) -> bool | None:
        """Whether it has ended; None if that cannot be seen from here."""
        if not self.space or (self.host, self.space) != (platform.node(), _space()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is another user's
            pass
        try:
            return _started(self.pid) != self.started
        except OSError:  # /proc hides it, as `hidepid` does other users' processes
            return None


def _space() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:  # as in some sandboxes
        return ""


def _started(pid: int) -> str:
    """Start time of a live process; empty if it has died and awaits its parent.

    Raises:
        OSError: /proc shows none with that id.
    """
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[_START_TIME]
