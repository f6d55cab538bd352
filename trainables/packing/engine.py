"""The loop over slots: one forward and backward pass for all trials training on a base."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from trainables.config import TrialConfig
from trainables.data.tokenized import trial_inputs
from trainables.errors import release_frames, traced
from trainables.evaluation.evaluator import Evaluator
from trainables.evaluation.harness_model import Routed
from trainables.models.four_bit import thaw
from trainables.models.loading import shared_base
from trainables.packing.adapters import AdaptedLayers, Adapter, AdapterGroup, Part, lay_out
from trainables.packing.packable import check_packable, resolve_targets
from trainables.packing.packed_batch import Batch
from trainables.packing.packed_dropout import Masks
from trainables.packing.packed_loss import PassLoss
from trainables.packing.passes import PassTimes, Share, padded_tokens, plan
from trainables.packing.shared import Shared
from trainables.packing.slot import Slot
from trainables.process.out_of_memory import free_memory, is_out_of_memory
from trainables.records.schema import TrialResult
from trainables.training.reporter import Reporter

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a trial's time in its slot ended: with a result, or with an error."""

    slot: Slot
    result: TrialResult | None = None
    error: Exception | None = None


class SlotEngine:
    """Trains any number of trials on this process's base; they join and leave between passes.

    Args:
        trial: one of them; the base is frozen until `close`.

    Attributes:
        shared: what all its trials have in common.

    Raises:
        NotPackable: the base cannot be shared.
    """

    def __init__(self, trial: TrialConfig) -> None:
        self.shared = Shared.of(trial)
        self._base = shared_base(trial.model)
        names, self._resolved = resolve_targets(self._base, trial.method)
        check_packable(self._base, names, self.shared.longest)
        self._targets = lay_out([(name, self._base.get_submodule(name)) for name in names])
        self._layers = AdaptedLayers(self._targets)
        self._groups: dict[int, AdapterGroup] = {}  # by their layouts' key
        self._slots: dict[Adapter, Slot] = {}
        self._times = PassTimes()
        self._most_tokens = 0  # in a pass, while there is a slot of `_short`
        self._short: set[Adapter] = set()  # those that were busy as memory ran out
        self._largest_pass = 0
        self._dtype = getattr(torch, trial.model.dtype)
        contexts = self._layers.contexts if self.shared.recomputes else None
        self._loss = PassLoss(self._base, self._autocast, contexts)
        self._base.requires_grad_(False)
        self._base.train()

    @property
    def slots(self) -> list[Slot]:
        """The busy slots."""
        return list(self._slots.values())

    def join(self, trial: TrialConfig, reporter: Reporter) -> Slot:
        """Give a trial a slot, effective from the next pass.

        It needs what `shared` says. A trial begun by an earlier attempt resumes from its newest
        checkpoint.
        """
        with self.charged_to():
            slot = self._new_slot(trial, reporter)
        self._slots[slot.adapter] = slot
        try:
            with self.charged_to(slot):
                slot.restore()
            with self._alone(slot):  # which sees what was restored
                slot.begin()
        except BaseException as error:
            release_frames(error)  # leaving takes memory, which they may hold
            self.leave(slot)
            raise
        return slot

    def _new_slot(self, trial: TrialConfig, reporter: Reporter) -> Slot:
        """Make a trial's state, with its adapter in a group."""
        tokenizer, tokenized = trial_inputs(trial)
        slot = Slot(
            trial, reporter, self._base, tokenizer, tokenized, self._targets, self._resolved
        )
        key = slot.adapter.layout.key
        members = self._groups[key].adapters if key in self._groups else []
        try:
            self._groups[key] = AdapterGroup([*members, slot.adapter], self._dtype)
        except BaseException:  # else its tensors stay until Python next looks for cycles
            slot.release()
            raise
        return slot

    def leave(self, slot: Slot) -> None:
        """Free a slot, whatever the state of its trial."""
        del self._slots[slot.adapter]
        self._short.discard(slot.adapter)
        key = slot.adapter.layout.key
        rest = [adapter for adapter in self._groups[key].adapters if adapter is not slot.adapter]
        slot.adapter.release()  # else those that end in one step keep a matrix alive each
        if rest:
            self._groups[key] = AdapterGroup(rest, self._dtype)
        else:
            del self._groups[key]
        slot.release()

    def step(self) -> list[Ended]:
        """Train each busy slot on a micro-batch, and take an optimizer step where one is due."""
        if already := [slot for slot in self.slots if slot.is_trained]:
            return [self._end(slot) for slot in already]
        losses, ended = self._run(self._plan(self.slots))
        due = [slot for slot, loss in losses.items() if slot.take_pass(loss)]
        return ended + self._take_steps(due)

    def _plan(self, slots: Sequence[Slot]) -> list[list[Share]]:
        """The passes in which slots train on their next micro-batches."""
        ordered = [self._slots[a] for group in self._groups.values() for a in group.adapters]
        shares = [Share(slot, slot.micro_batch()) for slot in ordered if slot in slots]
        return plan(shares, self._times, self._most_tokens if self._short else math.inf)

    def _run(self, passes: Sequence[Sequence[Share]]) -> tuple[dict[Slot, float], list[Ended]]:
        """Run passes until memory runs out; returns the loss of each slot that is through its own.

        A slot is through once all samples of its micro-batch have passed.
        """
        losses = {share.slot: 0.0 for shares in passes for share in shares}
        for number, shares in enumerate(passes):
            slots = [share.slot for share in shares]
            try:
                with self.charged_to(*slots):
                    share_losses = self._pass(shares)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                not_through = {share.slot for later in passes[number:] for share in later}
                with self.charged_to(*slots):
                    ended = self._make_room(shares, error)
                for slot in not_through:
                    del losses[slot]
                    if slot.adapter in self._slots:
                        slot.restart_step()  # its passes have left partial gradients
                return losses, ended
            for share, loss in zip(shares, share_losses, strict=True):
                losses[share.slot] += loss
        return losses, []

    def _make_room(self, shares: Sequence[Share], error: Exception) -> list[Ended]:
        """Halve the tokens per pass until all busy slots are free; one alone gets the error."""
        error = traced(error)
        free_memory()
        if len(shares) == 1:
            self.leave(shares[0].slot)
            return [Ended(shares[0].slot, error=error)]
        self._most_tokens = padded_tokens(shares) // 2
        self._short = set(self._slots)
        _LOG.warning("memory runs out: passes of at most %d tokens for now", self._most_tokens)
        return []

    def time_pass(self, count: int, step: int | None) -> float:
        """Train `count` slots, all of equal batches, on a micro-batch; returns the seconds taken.

        `step`: whose samples each takes; None for the first slot's longest samples, which take the
        most memory.
        """
        slots = self.slots[:count]
        for slot in slots:
            slot.go_to((step or 0) % slot.args.max_steps)
            slot.micro_batch()  # is read now, which in training is done for many steps at once
        longest = slots[0].longest_micro_batch() if step is None else []
        started = time.perf_counter()
        passes = [[Share(slot, longest) for slot in slots]] if longest else self._plan(slots)
        for shares in passes:
            self._pass(shares)
        for slot in slots:
            slot.optimizer.clip(1.0)
            slot.optimizer.step()
            slot.optimizer.zero_grad()
        if self._base.device.type == "cuda":  # else the next pass would be charged with the steps
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def clear(self) -> None:
        """Free all slots."""
        for slot in self.slots:
            slot.release()
        self._slots.clear()
        self._groups.clear()
        self._largest_pass = 0
        free_memory()

    def close(self) -> None:
        """Restore the base to its original state."""
        self.clear()
        self._loss.close()
        self._base.eval()
        thaw(self._base)

    def _pass(self, shares: Sequence[Share]) -> list[float]:
        """Run a forward and backward pass; returns each share's part of its slot's loss."""
        started = time.perf_counter()
        batch = Batch.of(
            [share.samples for share in shares],
            [share.slot.labelled_tokens for share in shares],
            self._base.device,
        )
        masks = Masks(
            [share.slot.adapter.layout.dropout for share in shares],
            [share.slot.generator for share in shares],
            batch,
        )
        parts = self._make_parts((share.slot, len(share.samples)) for share in shares)
        own = [share.slot.trial.loss for share in shares]
        base_TF = self._loss.base_features(batch) if any(loss.reads_base for loss in own) else None
        with self._layers.routed(parts, masks):
            features_TF = self._loss.features(batch)
            losses: list[float] = self._loss.backward(features_TF, batch, own, base_TF).tolist()
        tokens = batch.input_ids_NS.numel()
        self._times.add(tokens, time.perf_counter() - started)
        self._largest_pass = max(self._largest_pass, tokens)
        return losses

    def _take_steps(self, due: Sequence[Slot]) -> list[Ended]:
        """Take an optimizer step in each of these slots, with everything due after it."""
        norms = []
        for slot in due:
            with self.charged_to(slot):
                norms.append(slot.take_step())
        if norms:
            with self.charged_to(*due):  # all are read at once, since each read waits for the GPU
                for slot, norm in zip(due, torch.stack(norms).tolist(), strict=True):
                    slot.log_norm(norm)
        self._answer_ahead(due)
        return [end for slot in due if (end := self._report(slot))]

    def _report(self, slot: Slot) -> Ended | None:
        """Do what is due after a slot's step; None lets the trial go on."""
        # There are many layers, so they are routed only for work that passes through them.
        context = self._alone if slot.evaluator is not None else self.charged_to
        try:
            with context(slot):
                slot.report()
        except Exception as error:  # one trial's error must not affect its neighbours
            error = traced(error)  # leaving takes memory, which its frames may hold
            self.leave(slot)
            return Ended(slot, error=error)
        return self._end(slot) if slot.is_trained else None

    def _answer_ahead(self, slots: Sequence[Slot]) -> None:
        """Evaluate slots that are now due at the same evaluator in shared passes."""
        by_evaluator: dict[Evaluator, list[Slot]] = {}
        for slot in slots:
            if slot.evaluator is not None:
                by_evaluator.setdefault(slot.evaluator, []).append(slot)
        for evaluator, members in by_evaluator.items():
            at_once = evaluator.models_at_once(self._largest_pass, self._base.device)
            for start in range(0, len(members), at_once):
                if len(some := members[start : start + at_once]) > 1:
                    self._answer_some_ahead(evaluator, some)

    def _answer_some_ahead(self, evaluator: Evaluator, slots: Sequence[Slot]) -> None:
        started = time.perf_counter()

        def routed(rows: int) -> Any:
            return self._layers.routed(self._make_parts((slot, rows) for slot in slots))

        with self.charged_to(*slots):
            self._answer_or_not(evaluator, [slot.model for slot in slots], routed)
        seconds = time.perf_counter() - started
        for slot in slots:
            slot.measuring.charge_evaluation(seconds / len(slots))

    def _answer_or_not(self, evaluator: Evaluator, models: Sequence[Any], routed: Routed) -> None:
        """Answer for several models in shared passes, unless memory runs out."""
        try:
            evaluator.answer_ahead(models, routed)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            free_memory()  # each then computes its own answers

    def _evaluate_strengths(self, slot: Slot) -> None:
        """Evaluate a trained slot at its trial's other strengths, several in a pass.

        Raises:
            StopTrial: that was asked for; the rest follows in the next attempt.
        """
        models, evaluator = slot.at_strengths(), slot.measuring.evaluator
        at_once = max(1, evaluator.models_at_once(self._largest_pass, self._base.device))
        strengths = list(models)
        for first in range(0, len(models), at_once):
            some = {strength: models[strength] for strength in strengths[first : first + at_once]}
            group = AdapterGroup([model.adapter for model in some.values()], self._dtype)
            started = time.perf_counter()
            if len(some) > 1:
                everyone = partial(self._routed_to, group, 0, len(some))
                self._answer_or_not(evaluator, [*some.values()], everyone)
            slot.measuring.charge_evaluation(time.perf_counter() - started)
            for number, (strength, model) in enumerate(some.items()):
                slot.check_stop()
                with self._routed_to(group, number, number + 1), self._autocast():
                    slot.measuring.evaluate_at(strength, model)

    def _routed_to(self, group: AdapterGroup, first: int, last: int, rows: int = 1) -> Any:
        return self._layers.routed([Part(group, first, last, rows)])

    def _make_parts(self, rows: Iterable[tuple[Slot, int]]) -> list[Part]:
        """The parts of a batch with so many rows of each slot, in order."""
        parts: list[Part] = []
        for slot, count in rows:
            group = self._groups[slot.adapter.layout.key]
            index = group.adapters.index(slot.adapter)
            last = parts[-1] if parts else None
            is_next = last and (last.group, last.last, last.rows) == (group, index, count)
            first = parts.pop().first if is_next else index
            parts.append(Part(group, first, index + 1, count))
        return parts

    def _end(self, slot: Slot) -> Ended:
        with self.charged_to(slot):
            try:
                self._evaluate_strengths(slot)
                return Ended(slot, result=slot.finish())
            except Exception as error:
                return Ended(slot, error=traced(error))
            finally:
                self.leave(slot)

    @contextmanager
    def _alone(self, slot: Slot) -> Iterator[None]:
        """Run the base with one slot's adapter, on that slot's time."""
        part = self._make_parts([(slot, 1)])  # alone it gets all rows, however many there are
        with self.charged_to(slot), self._layers.routed(part), self._autocast():
            yield

    @contextmanager
    def charged_to(self, *slots: Slot) -> Iterator[None]:
        """Split the time spent in the context evenly among these slots; charge no other."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            for slot in self.slots:
                own = seconds / len(slots) if slot in slots else 0.0
                slot.measuring.exclude(seconds - own)

    def _autocast(self) -> Any:
        if self._dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._base.device.type, self._dtype)
