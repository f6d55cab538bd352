"""Trials that the user ends one by one while the sweep goes on.

A request is an empty file in the sweep's folder, from `tune.folder.ask_to_stop`. It stays until
the trial has ended, also if the driver dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress

from trainables.records.ledger import Ledger
from trainables.records.schema import Outcome, TrialRecord, TrialStatus
from tune.listeners import SweepListener

_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_IN_STORE = 30.0  # where each look is a request

# The search learns nothing from it, and `--retry-failed` resumes it.
ENDED_BY_HAND = Outcome(status=TrialStatus.CANCELLED, reason="ended by hand")


class StopsByHand(SweepListener):
    """Looks for requests, passes them on, and removes them once the trials have ended.

    Args:
        ledger: of the sweep.
        ask: asks the trials of these numbers to end; called again until they have.
        may_write: raises if another driver has taken the sweep over.
        clock: monotonic clock, in seconds.

    Attributes:
        asked: numbers of the trials that were asked and have not ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        ask: Callable[[Set[int]], None],
        may_write: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._storage = ledger.folder, ledger.storage
        self._ask = ask
        self._may_write = may_write
        self._clock = clock
        in_store = self._folder.is_in_store
        self._interval = _SECONDS_IN_STORE if in_store else _SECONDS_BETWEEN_LOOKS
        self._looked = clock()
        self.asked: Set[int] = frozenset()

    def left_for(self, begun: Set[int]) -> Set[int]:
        """Which of these trials an earlier driver left a request for; removes other requests."""
        return self._open(self._requests(), begun)

    def look(self, unfinished: Callable[[], Set[int]]) -> None:
        """Look for requests, if it is time to.

        Args:
            unfinished: returns the numbers of the trials that have begun and not ended.
        """
        if self._clock() - self._looked < self._interval:
            return
        self._looked = self._clock()
        try:
            requests = self._requests()
        except OSError:  # the storage may answer at the next look
            return
        if requests or self.asked:
            self.asked = self._open(requests, unfinished())
            self._ask(self.asked)

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Remove requests except those for the next start."""
        with suppress(OSError):
            self.left_for({r.number for r in records if r.status is TrialStatus.RUNNING})

    def _requests(self) -> dict[int, str]:
        """The name of each request's file, by the number of its trial."""
        names = self._storage.children(self._folder.name(self._folder.stop))
        return {int(name): name for name in names if name.isdecimal()}

    def _open(self, requests: Mapping[int, str], unfinished: Set[int]) -> Set[int]:
        """The requests whose trials have not ended; removes the others."""
        open_ones = requests.keys() & unfinished
        for number in requests.keys() - open_ones:
            self._may_write()
            with suppress(OSError):  # the next look tries it again
                self._storage.remove(self._folder.name(self._folder.stop / requests[number]))
        return open_ones
