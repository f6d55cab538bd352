"""One driver at a time: a lock on a sweep's folder, with an owner and a heartbeat.

`lock.json` names the driver that holds the sweep. Another driver takes the sweep over at once if
that process is gone, else after its heartbeat has stopped for long enough. To do so it creates
`lock.TOKEN.json`, with the token of the driver before it; the last of this chain holds the sweep.
A lock is only created, never rewritten, because a driver may be suspended before any write and
wake up after it has lost the sweep. Heartbeats have files of their own.

A driver that was suspended for longer than this limit reads the lock before it writes again.
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
from trainables.records.ledger import cannot_write
from trainables.records.record_paths import SweepFolder
from trainables.storage.storage import Location, open_storage
from tune.folder.process import Process

logger = logging.getLogger(__name__)

_INTERVAL_S = 10.0
_MISSED_BEATS = 6


class SweepLost(UserError):
    """Another driver has taken the sweep over."""


class LockRecord(Frozen):
    """Who holds a sweep, or held it, and its last sign of life.

    Attributes:
        since: when it took the sweep, in local time, for human readers.
        token: random, new each time a sweep is taken.
        heartbeat: when it gave the sign of life, seconds since the epoch.
        interval: seconds between heartbeats.
    """

    schema_version: int = 1
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
    """Holds a sweep within a `with` block.

    Args:
        location: the sweep's folder, or its address in an object store.
        interval: seconds between heartbeats.

    Raises:
        UserError: on entry, another driver holds the sweep or its folder cannot be written to.
        SweepLost: on exit, another driver has taken it over.
    """

    def __init__(self, location: Location, interval: float = _INTERVAL_S) -> None:
        self._folder = SweepFolder(location)
        self._storage = open_storage(location)
        self._interval = interval
        self._since = datetime.now().isoformat(" ", "seconds")
        self._token = secrets.token_hex(8)
        self._process = Process.current()
        self._ended = threading.Event()
        self._renewed = time.time()
        self._renewing = threading.Lock()
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
            self._release()

    def check(self) -> None:
        """Check that this driver may still write.

        Raises:
            SweepLost: the sweep was taken over.
            UserError: this process was suspended for so long that another driver may hold the
                sweep, and the lock cannot be read.
        """
        if abs(time.time() - self._renewed) > _MISSED_BEATS * self._interval:
            with self._renewing:
                try:
                    self._renew()
                except OSError as error:
                    raise cannot_write(self._folder.location, error) from error
        if self._thief is not None:
            raise self._lost(self._thief)

    def _acquire(self) -> None:
        while True:
            holder = self._holder()
            file = self._folder.lock
            if holder is not None:
                self._refuse_if_alive(holder)
                file = self._folder.lock_after(holder.token)
            if self._create(file):
                if self._is_mine(self._holder()):
                    return
                self._storage.remove(file.name)  # the holder before has just ended by itself

    def _release(self) -> None:
        chain = self._chain()
        if not self._is_mine(chain[-1] if chain else None):
            return
        self._storage.remove(self._folder.lock.name)
        for record in chain:
            self._storage.remove(self._folder.heartbeat(record.token).name)
        for before in chain[:-1]:
            # One that stands still has yet to learn that the sweep was taken over.
            if before.process.is_gone():
                self._storage.remove(self._folder.lock_after(before.token).name)

    def _chain(self) -> list[LockRecord]:
        """Who took the sweep, each from the one before."""
        chain: list[LockRecord] = []
        file = self._folder.lock
        while (record := self._read(file)) is not None:
            chain.append(record)
            file = self._folder.lock_after(record.token)
        return chain

    def _holder(self) -> LockRecord | None:
        """The driver that holds the sweep, with its last sign of life."""
        chain = self._chain()
        return (self._read(self._folder.heartbeat(chain[-1].token)) or chain[-1]) if chain else None

    def _is_mine(self, holder: LockRecord | None) -> bool:
        return holder is not None and holder.token == self._token

    def _refuse_if_alive(self, holder: LockRecord) -> None:
        is_gone = holder.process.is_gone()
        if is_gone is None:
            is_gone = holder.is_late() and self._stands_still(holder)
        if not is_gone:
            raise self._held(self._holder() or holder)  # another may have been faster meanwhile

    def _stands_still(self, holder: LockRecord) -> bool:
        """Watch for a heartbeat: the clocks of two machines may differ by more than the limit."""
        message = "%s: held by %s; taking it over unless there is a newer one within %.0f s"
        logger.warning(message, self._folder.location, holder, _MISSED_BEATS * holder.interval)
        for _ in range(_MISSED_BEATS):
            time.sleep(holder.interval)
            now = self._holder()
            if now is None:
                return True
            if (now.token, now.heartbeat) != (holder.token, holder.heartbeat):
                return False
        return True

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            with self._renewing:
                if self._thief is not None:
                    return  # the main thread knows
                try:
                    self._renew()
                except Exception as error:  # a disk that fails now may answer at the next beat
                    logger.warning("the lock cannot be renewed: %s", error)
                if self._thief is not None and not self._ended.is_set():
                    # Acts like Ctrl-C and wakes the main thread from whatever it waits for.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return

    def _renew(self) -> None:
        # Without a lock, the driver that took the sweep over has ended, or a user deleted the lock.
        holder = self._holder() or self._read(self._folder.lock_after(self._token))
        if holder is None and not self._create(self._folder.lock):
            holder = self._holder()
        if holder is not None and not self._is_mine(holder):
            self._thief = holder
            return
        self._storage.write(self._folder.heartbeat(self._token).name, self._content())
        self._renewed = time.time()

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
        return self._is_mine(self._read(file))

    def _read(self, file: Path) -> LockRecord | None:
        try:
            return LockRecord.model_validate_json(self._storage.read(file.name))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            rule, remedy = "is not a lock", "if no other driver runs this sweep, delete the file"
            raise UserError([Fault(self._folder.place(file), rule, remedy)]) from error

    def _held(self, holder: LockRecord) -> UserError:
        limit = _MISSED_BEATS * holder.interval
        after = f"start again {limit:.0f} s after the last sign of life"
        remedy = f"wait for it or stop it; if its machine is gone, {after}"
        rule = f"another driver runs it: {holder}"
        return UserError([Fault(str(self._folder.location), rule, remedy)])

    def _lost(self, thief: LockRecord) -> SweepLost:
        rule = f"was taken over by another driver while this one was suspended: {thief}"
        remedy = "this one has stopped; nothing is lost"
        return SweepLost([Fault(str(self._folder.location), rule, remedy)])
