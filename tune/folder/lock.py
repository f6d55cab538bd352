"""One driver at a time: a lock on a sweep's folder, with an owner and a heartbeat.

`lock.json` names the driver that holds the sweep. The lock of a dead driver is taken over: at once
if its process is seen to be gone, else once its heartbeat has stood still for long enough.

On a local disk and on NFS, creation is exclusive. An object store silently overwrites objects, so
there a driver writes, waits and reads back; two drivers that start within that wait could both
proceed if a write took longer. The heartbeat ends that within one interval: the driver that finds
the other's name in the lock stops.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from trainables.config import Frozen
from trainables.errors import Fault, UserError
from trainables.files.storage import Location, open_storage
from trainables.records.folder import SweepFolder
from trainables.records.ledger import cannot_write
from trainables.records.schema import SCHEMA_VERSION
from tune.folder.process import Process

logger = logging.getLogger(__name__)

_INTERVAL_S = 10.0
_MISSED_BEATS = 6


class LockRecord(Frozen):
    """Who holds a sweep (`lock.json`).

    Attributes:
        since: when it took the sweep, in local time, for human readers.
        token: random, new each time the lock is taken.
        heartbeat: when it last renewed the lock, seconds since the epoch.
        interval: seconds between heartbeats.
    """

    schema_version: int = SCHEMA_VERSION
    process: Process
    since: str
    token: str
    heartbeat: float
    interval: float

    def is_late(self) -> bool:
        """Whether it missed enough heartbeats to count as dead, or its clock is as far ahead."""
        return abs(time.time() - self.heartbeat) > _MISSED_BEATS * self.interval

    def __str__(self) -> str:
        seen = datetime.fromtimestamp(self.heartbeat).isoformat(" ", "seconds")
        return (
            f"process {self.process.pid} on {self.process.host} since {self.since}, "
            f"last sign of life {seen}"
        )


class SweepLock:
    """Holds a sweep within a context.

    Args:
        location: the sweep's folder, or its address in an object store.
        interval: seconds between heartbeats.

    Raises:
        UserError: on entry, another driver holds the sweep or its folder cannot be written to; on
            exit, another driver has taken it over because this one gave no sign of life too long.
    """

    def __init__(self, location: Location, interval: float = _INTERVAL_S) -> None:
        self._folder = SweepFolder(location)
        self._storage = open_storage(location)
        self._interval = interval
        self._since = datetime.now().isoformat(" ", "seconds")
        self._token = secrets.token_hex(8)
        self._process = Process.current()
        self._ended = threading.Event()
        self._thief: LockRecord | None = None
        self._heart = threading.Thread(target=self._beat, name="sweep lock", daemon=True)

    def __enter__(self) -> SweepLock:
        try:
            self._acquire()
        except OSError as error:
            raise cannot_write(self._folder.location, error) from error
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._heart.join()
        if self._thief is not None:
            raise self._lost(self._thief) from None
        with suppress(OSError):  # else the lock goes stale by itself
            holder = self._read(self._folder.lock)
            if holder is not None and holder.token == self._token:
                self._storage.remove(self._folder.lock.name)

    def check(self) -> None:
        """Check that this driver may still write.

        Raises:
            UserError: the sweep was taken over.
        """
        if self._thief is not None:
            raise self._lost(self._thief)

    def _acquire(self) -> None:
        is_mine = False
        while not is_mine:
            holder = self._read(self._folder.lock)
            if holder is None:
                is_mine = self._create(self._folder.lock)
            else:
                self._refuse_if_alive(holder, self._folder.lock)
                is_mine = self._take_over(holder)

    def _take_over(self, dead: LockRecord) -> bool:
        """Replace the lock of a dead driver; False if another driver was faster.

        Of several drivers, only the one that creates the claim on the dead one's token may do so.
        If a claimant is dead itself, its claim is claimed in turn.
        """
        last = dead
        while not self._create(claim := self._folder.lock_claim(last.token)):
            claimant = self._read(claim)
            if claimant is None:
                return False  # it has just finished
            self._refuse_if_alive(claimant, claim)
            last = claimant
        holder = self._read(self._folder.lock)
        is_unchanged = holder is not None and holder.token == dead.token
        if is_unchanged:
            self._storage.write(self._folder.lock.name, self._content())
        # Any driver that creates one of these claims from now on finds the lock changed.
        for name in self._storage.children("") if is_unchanged else [claim.name]:
            if self._folder.is_lock_claim(name):
                self._storage.remove(name)
        return is_unchanged

    def _refuse_if_alive(self, holder: LockRecord, file: Path) -> None:
        is_gone = holder.process.is_gone()
        if is_gone is None:
            is_gone = holder.is_late() and self._stands_still(holder, file)
        if not is_gone:
            raise self._held(self._read(file) or holder)  # another may have been faster meanwhile

    def _stands_still(self, holder: LockRecord, file: Path) -> bool:
        """Watch for a heartbeat: the clocks of two machines may differ by more than the limit."""
        watched = "%s: held by %s; taking it over unless there is a newer one within %.0f s"
        logger.warning(watched, self._folder.location, holder, _MISSED_BEATS * holder.interval)
        for _ in range(_MISSED_BEATS):
            time.sleep(holder.interval)
            now = self._read(file)
            if now is None:
                return True
            if (now.token, now.heartbeat) != (holder.token, holder.heartbeat):
                return False
        return True

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self._renew()
            except Exception as error:  # a disk that fails now may answer at the next beat
                logger.warning("the lock cannot be renewed: %s", error)
            if self._thief is not None:
                # Acts like Ctrl-C and wakes the main thread from whatever it waits for.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _renew(self) -> None:
        holder = self._read(self._folder.lock)
        if holder is None and self._create(self._folder.lock):
            return  # someone had deleted it by hand
        holder = holder or self._read(self._folder.lock)
        if holder is not None and holder.token != self._token:
            self._thief = holder
        else:
            self._storage.write(self._folder.lock.name, self._content())

    def _content(self) -> bytes:
        record = LockRecord(
            process=self._process,
            since=self._since,
            token=self._token,
            heartbeat=time.time(),
            interval=self._interval,
        )
        return record.model_dump_json(indent=2).encode()

    def _create(self, file: Path) -> bool:
        if self._storage.create(file.name, self._content()):
            return True
        # NFS repeats a request whose answer was lost, and then finds what it has made itself.
        found = self._read(file)
        return found is not None and found.token == self._token

    def _read(self, file: Path) -> LockRecord | None:
        try:
            return LockRecord.model_validate_json(self._storage.read(file.name))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            fault = Fault(
                self._folder.place(file),
                "is no lock that this version knows",
                "if no other driver runs this sweep, delete the file",
            )
            raise UserError([fault]) from error

    def _held(self, holder: LockRecord) -> UserError:
        limit = _MISSED_BEATS * holder.interval
        remedy = (
            "wait for it or stop it; if its machine is gone, start again "
            f"{limit:.0f} s after the last sign of life"
        )
        return UserError(
            [Fault(str(self._folder.location), f"another driver runs it: {holder}", remedy)]
        )

    def _lost(self, thief: LockRecord) -> UserError:
        rule = f"was taken over by another driver while this one stood still: {thief}"
        return UserError(
            [Fault(str(self._folder.location), rule, "this one has stopped; nothing is lost")]
        )
