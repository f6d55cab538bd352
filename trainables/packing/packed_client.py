"""A trial on a slot host, as seen between the host's engine and the process that listens."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from trainables.config import TrialConfig

# All slots wait for one whose measurement is being recorded. W&B or an object store may hold the
# driver up for minutes; where it knows that a trial's process is lost, it has the trial leave.
_LONGEST_S = 600.0


@dataclass(eq=False)
class PackedClient:
    """A trial on a host; all methods must be called on the host's event loop."""

    trial: TrialConfig
    listener: str = ""
    suspect_at: int | None = None  # until a later step is recorded
    reported_step: int = 0
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    slot: Any = None
    is_gone: bool = False  # nobody listens any more
    tried: list[str] = field(default_factory=list)  # batches that memory ran out at
    _recorded: asyncio.Event = field(default_factory=asyncio.Event)

    async def record(self, event: dict[str, Any]) -> bool:
        """Queue a measurement and wait until it is recorded; False if nobody will record it."""
        self.events.put_nowait(event)
        self._recorded.clear()
        try:
            if not self.is_gone:
                await asyncio.wait_for(self._recorded.wait(), _LONGEST_S)
        except TimeoutError:  # the listening process has died, and no other has taken its place
            self.is_gone = True
        return not self.is_gone

    async def next_event(self) -> dict[str, Any]:
        """Wait for the next event; the caller is done with those before."""
        if self.events.empty():
            self._recorded.set()
        if self.suspect_at is not None and self.reported_step > self.suspect_at:
            self.suspect_at = None
        return await self.events.get()

    def release(self) -> None:
        """Nobody listens any more."""
        self.is_gone = True
        self._recorded.set()
