"""Trials that the user ends one by one, while the sweep goes on, as its driver learns of them.

A request is an empty file in the sweep's folder, which `tune.folder.ask_to_stop` writes from
wherever the user is. It stays until the trial has ended, whatever happens to the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress

from trainables.results.ledger import Ledger
from trainables.results.records import Outcome, TrialRecord, TrialStatus
from tune.listeners import SweepListener

STOPPED_BY_HAND = Outcome(status=TrialStatus.STOPPED_EARLY, reason="ended by hand")
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_IN_STORE = 30.0  # where each look is a request


class StopsByHand(SweepListener):
    """Looks for requests now and then, passes them on, and removes them once they are met.

    Args:
        ledger: ledger of the sweep.
        ask: asks the trials of these numbers to end; called again as long as any does not.
        clock: monotonic clock, in seconds.

    Attributes:
        asked: numbers of the trials that have been asked and have not ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        ask: Callable[[Set[int]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._storage = ledger.folder, ledger.storage
        self._ask = ask
        self._clock = clock
        in_store = isinstance(self._folder.location, str)
        self._interval = _SECONDS_IN_STORE if in_store else _SECONDS_BETWEEN_LOOKS
        self._looked = clock()
        self.asked: Set[int] = frozenset()

    def requested(self) -> Set[int]:
        """Numbers of the trials for which there is a request."""
        names = self._storage.children(self._folder.name(self._folder.stop))
        return {int(name) for name in names if name.isdigit()}

    def look(self, unfinished: Callable[[], Set[int]]) -> None:
        """Look for requests, if it is time to.

        Args:
            unfinished: returns the numbers of the trials that have begun and not ended; called
                only if there are requests, as the sweep may have many trials.
        """
        if self._clock() - self._looked < self._interval:
            return
        self._looked = self._clock()
        with suppress(OSError):  # the storage may answer at the next look
            if (requested := self.requested()) or self.asked:
                self.asked = self._without_met(requested, unfinished())
                self._ask(self.asked)

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Leave only the requests that the next start is to meet."""
        unfinished = {r.number for r in records if r.status is TrialStatus.RUNNING}
        with suppress(OSError):
            self._without_met(self.requested(), unfinished)

    def _without_met(self, requested: Set[int], unfinished: Set[int]) -> Set[int]:
        for number in requested - unfinished:
            self._storage.remove(self._folder.name(self._folder.stop_request(number)))
        return requested & unfinished
