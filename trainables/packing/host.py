"""A process that holds one base and its slots, and serves trials that live elsewhere.

A trial joins, listens until it receives an outcome, and may leave at any time. An event is
`{"measurement": ...}` at each report, and at the end `{"result": ...}` or `{"error": the
exception}`; `{"unknown": True}` if the trial is not here, for example after the process restarted.

By asking for the next event a trial confirms that the measurements before are recorded. If nobody
records an evaluation, the trial leaves, and the attempt that resumes from its checkpoint evaluates
again. A listener has a name, as a process that was cut off from the cluster may live on and would
answer for the trial's next attempt.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

from trainables.config import TrainConfig, TrialConfig
from trainables.errors import EvaluationOutOfMemory, OutOfMemory, first_line, traced
from trainables.gc_pause import gc_paused
from trainables.packing.packed_client import PackedClient
from trainables.packing.planning import Speed
from trainables.process import watchdog
from trainables.process.lost_process import end_with_lost_device
from trainables.records.schema import Measurement
from trainables.training.attempt_folder import (
    clear_node,
    on_this_node,
    publish_items,
    publish_results,
)
from trainables.training.reporter import StopTrial

MEASUREMENT = "measurement"
RESULT = "result"
ERROR = "error"
UNKNOWN = "unknown"
Event = dict[str, Any]
_LOG = logging.getLogger(__name__)


class _Unheard(Exception):
    """Nobody records what a trial measures."""


class _Mailbox:
    """A slot's reporter: hands measurements from the engine's thread to the listening trial."""

    def __init__(
        self,
        client: PackedClient,
        loop: asyncio.AbstractEventLoop,
        stop_requested: Callable[[int], bool],
    ) -> None:
        self._client, self._loop = client, loop
        self.stop_requested = partial(stop_requested, client.trial.number)

    def report(self, measurement: Measurement) -> None:
        client, total = self._client, measurement.total_steps
        watchdog.start(client.trial.minutes_per_report)
        publish_items(client.trial)
        event = {MEASUREMENT: measurement}
        assert total is not None  # noqa: S101 - `Measuring` tells it
        may_go_on = measurement.step not in _steps_to_record(client.trial.train, total)
        if may_go_on or measurement.is_altered:
            self._loop.call_soon_threadsafe(client.events.put_nowait, event)
            return
        watchdog.stop()  # Tune may take long to accept the report
        is_recorded = asyncio.run_coroutine_threadsafe(client.record(event), self._loop).result()
        watchdog.start(client.trial.minutes_per_report)
        if not is_recorded:  # its checkpoint must not say that the evaluation is
            raise _Unheard


@cache
def _steps_to_record(train: TrainConfig, total: int) -> frozenset[int]:
    """Steps that a trial trains on from only once they are recorded.

    Evaluations are, and what is reported last before them: a resumed trial goes on from the
    evaluation's checkpoint and reports nothing before it again.
    """
    evaluated = train.report_steps(total)
    reported = sorted(evaluated | train.log_steps(total))
    return evaluated | {step for step, following in pairwise(reported) if following in evaluated}


class SlotHost:
    """Slots for trials of one base; a trial that finds none free waits for the next.

    All methods must be called on one event loop. The engine runs in a thread of its own; trials
    join and leave between its passes.

    Args:
        stop_requested: whether all trials should save a checkpoint and end, or that of this number.
    """

    def __init__(self, stop_requested: Callable[[int | None], bool] = lambda trial: False) -> None:
        self._stop_requested = stop_requested
        self._slots = 1
        self._fits = sys.maxsize
        self._engine: Any = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._clients: dict[str, PackedClient] = {}
        self._waiting: deque[PackedClient] = deque()
        self._leaving: list[PackedClient] = []
        self._running: asyncio.Task[None] | None = None
        self._minutes: float | None = None

    async def load(self) -> int | None:
        """Number of trials here, including waiting ones; None if no more are accepted."""
        return None if self._stop_requested(None) else len(self._clients)

    async def load_libraries(self) -> None:
        """Import what training needs, before there is anything to train."""
        await self._in_thread(gc_paused()(import_module), "trainables.packing.engine")

    async def why_not_packed(self, trial: TrialConfig) -> str | None:
        """Why trials like this one cannot share the base; None if they can."""
        from trainables.packing.packable import NotPackable

        try:
            await self._in_thread(self._engine_for, trial)
        except NotPackable as error:
            return str(error)
        return None

    async def probe(
        self, trial: TrialConfig, most: int, passes: int, slot_seconds: float
    ) -> list[Speed]:
        """Measure how fast numbers of slots train; see `trainables.packing.probe`.

        This neither reads the trial's folders nor leaves anything in them.
        """
        from trainables.packing.probe import probe

        def measure() -> list[Speed]:
            with TemporaryDirectory() as scratch:
                elsewhere = {"output_dir": scratch, "published_dir": None, "earlier_attempts": ()}
                config = on_this_node(trial).model_copy(update=elsewhere)
                return probe(self._engine_for(config), config, most, passes, slot_seconds)

        speeds: list[Speed] = await self._in_thread(measure)
        return speeds

    async def join(
        self,
        trial: TrialConfig,
        slots: int,
        may_wait: bool = True,
        listener: str = "",
        suspect_at: int | None = None,
    ) -> bool:
        """Accept a trial; an earlier attempt at it, which nobody listens to any more, leaves.

        Args:
            trial: one that can train in a slot.
            slots: trials that may train here at a time.
            may_wait: whether to accept it even if all slots are taken.
            listener: who will ask for its events.
            suspect_at: its last recorded step if a host's process ended under it. One such trial is
                accepted at a time, until a later step is recorded: else several would be blamed.
        """
        self._slots = slots
        await self.leave(trial.trial_id)
        if len(self._clients) >= slots and not may_wait:
            return False
        suspects = [client for client in self._clients.values() if client.suspect_at is not None]
        if suspect_at is not None and suspects:
            return False
        self._minutes = trial.minutes_per_report
        client = PackedClient(trial, listener, suspect_at)
        self._clients[trial.trial_id] = client
        self._waiting.append(client)
        if self._running is None:
            self._running = asyncio.create_task(self._run_or_die())
        return True

    async def next_event(self, trial_id: str, listener: str = "") -> Event:
        """Wait for the next event of a trial that this listener had join."""
        client = self._clients.get(trial_id)
        if client is None or client.listener != listener:
            return {UNKNOWN: True}
        event = await client.next_event()
        if MEASUREMENT in event:
            client.reported_step = event[MEASUREMENT].step
        if RESULT in event or ERROR in event:
            self._remove(client)
        return event

    async def leave(self, trial_id: str, listener: str | None = None) -> None:
        """End a trial, whether it is waiting or training, if this listener, or any, had it join."""
        client = self._clients.get(trial_id)
        if client is None or listener not in (None, client.listener):
            return
        self._remove(client)
        client.release()
        client.events.put_nowait({UNKNOWN: True})  # else who asks for its events waits for ever
        if client in self._waiting:
            self._waiting.remove(client)
        else:
            self._leaving.append(client)

    def _remove(self, client: PackedClient) -> None:
        """Forget the trial, unless a later attempt at it has taken this one's place."""
        if self._clients.get(client.trial.trial_id) is client:
            del self._clients[client.trial.trial_id]

    async def at_rest(self) -> None:
        """Wait until no trial trains here and those that left are cleaned up."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run_or_die(self) -> None:
        """Exit if a pass fails: its state cannot be trusted, so the trials continue elsewhere."""
        try:
            await self._run()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    async def _run(self) -> None:
        """Run pass after pass for as long as there are trials to train."""
        busy: dict[Any, PackedClient] = {}
        while busy or self._waiting:
            for client in self._leaving:
                if busy.pop(client.slot, None):
                    await self._uncharged(self._engine.leave, client.slot)
                    client.slot = None
                    self._fits = sys.maxsize
                    await self._uncharged(clear_node, client.trial)
            self._leaving.clear()
            while self._waiting and len(busy) < min(self._slots, self._fits):
                client = self._waiting.popleft()
                if await self._admit(client, len(busy)):
                    busy[client.slot] = client
            # Those asked to stop do not wait for a slot for hours; they may have left meanwhile.
            for client in [*self._waiting]:
                if client in self._waiting and self._stop_requested(client.trial.number):
                    self._waiting.remove(client)
                    await self._end(client, StopTrial())
            if busy:
                await self._pass(busy)
        self._running = None

    async def _pass(self, busy: dict[Any, PackedClient]) -> None:
        """Run one pass; trials that ended with it are released before the next."""
        for ended in await self._in_thread(self._engine.step):
            client = busy.pop(ended.slot)
            client.slot = None
            self._fits = sys.maxsize
            if ended.error is not None:
                await self._end(client, ended.error)
            else:
                await self._send_end(client, {RESULT: ended.result})

    async def _admit(self, client: PackedClient, busy: int) -> bool:
        """Give a trial a slot, or handle the error that prevents it."""
        mailbox = _Mailbox(client, asyncio.get_running_loop(), self._stop_requested)
        try:
            client.trial = await self._uncharged(on_this_node, client.trial)
            client.slot = await self._in_thread(
                lambda: self._engine_for(client.trial).join(client.trial, mailbox)
            )
        except Exception as error:  # one trial's error must never end its neighbours
            await self._end(client, traced(error), busy)
            return False
        return True

    async def _end(self, client: PackedClient, error: Exception, busy: int = 0) -> None:
        """Let a trial continue with smaller batches if it ran out of memory, else end it.

        Its best weights are published first, for an attempt that goes on from its checkpoint.
        `busy`: slots that others held when there was no memory for its own.
        """
        await self._in_thread(end_with_lost_device)
        if client.is_gone:
            self._remove(client)
            client.events.put_nowait({UNKNOWN: True})  # to a slow listener
            await self._uncharged(clear_node, client.trial)
            return
        final = self._try_smaller(client, error, busy)
        if final is not None:
            await self._send_end(client, {ERROR: final})

    async def _send_end(self, client: PackedClient, ending: Event) -> None:
        """Publish a trial's results, then send it its end, or the error of publishing."""
        try:
            await self._uncharged(publish_results, client.trial)
        except OSError as storage_error:
            ending = {ERROR: traced(storage_error)}
        # A trial that was ended by hand, while the others go on, does not come back.
        is_last = isinstance(ending.get(ERROR), StopTrial) and not self._stop_requested(None)
        if RESULT in ending or is_last:
            await self._uncharged(clear_node, client.trial)
        client.events.put_nowait(ending)

    def _try_smaller(self, client: PackedClient, error: Exception, busy: int) -> Exception | None:
        """Have a trial that ran out of memory wait for a slot anew, or return what it ends with."""
        from trainables.process.out_of_memory import is_out_of_memory, with_smaller_batches

        if not is_out_of_memory(error):
            return error
        if busy and not isinstance(error, EvaluationOutOfMemory):
            self._fits = busy  # it waits until one of those is free
        else:
            try:
                client.trial = with_smaller_batches(client.trial, client.tried, error)
            except OutOfMemory as final:  # no error of torch's, which the trial's process lacks
                return final
        _LOG.warning("%s waits for a slot anew: %s", client.trial.trial_id, first_line(error))
        self._waiting.appendleft(client)
        return None

    def _engine_for(self, trial: TrialConfig) -> Any:
        """The process's engine; what the first trial needs, all others must need too."""
        if self._engine is None:
            from trainables.packing.engine import SlotEngine

            self._engine = SlotEngine(trial)
        self._engine.shared.check(trial)
        return self._engine

    async def _uncharged(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Work between passes, for which the trials in slots wait: on the time of none of them."""

        def apart() -> Any:
            with self._engine.charged_to() if self._engine else nullcontext():
                return work(*arguments)

        return await self._in_thread(apart)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        def watched() -> Any:
            watchdog.start(self._minutes)
            try:
                return work(*arguments)
            finally:
                watchdog.stop()

        return await asyncio.get_running_loop().run_in_executor(self._thread, watched)
