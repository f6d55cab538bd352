"""The earlier trials that a sweep goes on from: its own and those of its warm start.

The search and its objectives may be edited between two starts as long as the recorded trials fit;
what must not change is in `config.same_sweep`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from analysis.results.formatting import goal_metrics
from analysis.results.recommendation import numbers_text
from trainables.errors import Fault, UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import ENDED_WELL, TrialRecord, TrialStatus
from trainables.storage.storage import Location, join, parse_location
from tune.config.deepspeed_settings import deciding_settings
from tune.config.input_files import digests
from tune.config.same_sweep import check_same_inputs, check_same_sweep, other_questions
from tune.config.sweep_config import SweepConfig
from tune.search.space import Misfit, recorded_params

# What `--retry-failed` runs again.
RETRIED = (TrialStatus.FAILED, TrialStatus.CANCELLED, TrialStatus.OUT_OF_MEMORY)


@dataclass(frozen=True)
class EarlierTrials:
    """What a start of the command finds.

    Attributes:
        own: the sweep's trials.
        warm: trials of other sweeps that its search starts from.
        left_out: how many other trials those sweeps have, and why they are not used.
        is_warm_new: whether the sweep has not read those sweeps before.
    """

    own: list[TrialRecord]
    warm: list[TrialRecord]
    left_out: list[str]
    is_warm_new: bool

    def ended(self, retry_failed: bool) -> list[TrialRecord]:
        """The sweep's own trials that have ended."""
        return [record for record in self.own if not _runs_again(record, retry_failed)]

    def to_go_on(self, retry_failed: bool) -> list[TrialRecord]:
        """The sweep's own trials that go on from their checkpoints."""
        return [record for record in self.own if _runs_again(record, retry_failed)]

    def messages(self) -> list[str]:
        """How many trials are taken from other sweeps, and which are left out."""
        took = [f"took {len(self.warm)} trial(s)"] if self.warm or self.left_out else []
        left_out = [f"left out {reason}" for reason in self.left_out]
        return [f"warm_start: {line}" for line in took + left_out]


def _runs_again(record: TrialRecord, retry_failed: bool) -> bool:
    return record.status is TrialStatus.RUNNING or (retry_failed and record.status in RETRIED)


def earlier_trials(config: SweepConfig, ledger: Ledger, inputs: Mapping[str, str]) -> EarlierTrials:
    """Read the trials that a sweep goes on from.

    Args:
        config: of this start.
        ledger: of the sweep, which may be new.
        inputs: digests of the sweep's files by field.

    Raises:
        UserError: the sweep cannot go on from them.
    """
    if config.warm_start and config.sampler == "grid":  # their points would count as run
        rule = "must not be given to a grid, which learns from no trial"
        raise UserError([Fault("warm_start", rule, "leave it out, or take another sampler")])
    own: list[TrialRecord] = []
    is_warm_new, sweep_id = True, ""
    if ledger.exists():
        sweep = ledger.sweep()
        sweep_id = sweep.sweep_id
        check_same_sweep(sweep.config, config, ledger.folder.location)
        check_same_inputs(sweep.inputs, inputs)
        own = own_trials(config, [_with_history(record, ledger) for record in ledger.trials()])
        is_warm_new = sweep.config.get("warm_start") != list(config.warm_start)
    if is_warm_new:
        warm, left_out = import_trials(config, inputs, sweep_id)
    else:
        warm, reasons = usable_trials(config, ledger.warm_start())
        left_out = [f"{n}: {why}" for why, n in reasons.items()]
    return EarlierTrials(own, warm, left_out, is_warm_new)


def preview_earlier_trials(config: SweepConfig, output_dir: Location) -> EarlierTrials:
    """The same before the cluster is up; empty if the folder cannot be read from here.

    Raises:
        UserError: the sweep cannot go on from them.
    """
    with suppress(OSError, ValueError):  # the sweep itself reports it
        ledger = Ledger(join(output_dir, config.name))
        if ledger.exists() or config.warm_start:
            return earlier_trials(config, ledger, digests(config))
    return EarlierTrials([], [], [], is_warm_new=True)


def _with_history(record: TrialRecord, ledger: Ledger) -> TrialRecord:
    """The record with its measurements, which that of a running trial lacks."""
    if record.status is TrialStatus.RUNNING:
        for measurement in (*ledger.measurements(record.number), *ledger.points(record.number)):
            record = record.after(measurement)
    return record


def own_trials(config: SweepConfig, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """A sweep's own records, with the parameters that its search gives them now.

    Raises:
        UserError: a trial is not in the search.
    """
    misfits: dict[str, list[tuple[TrialRecord, Misfit]]] = {}
    found = []
    for record in records:
        try:
            found.append(_placed(config, record))
        except Misfit as misfit:
            misfits.setdefault(misfit.field, []).append((record, misfit))
    if misfits:
        raise UserError([_misfit_fault(field, outside) for field, outside in misfits.items()])
    return found


def _placed(config: SweepConfig, record: TrialRecord) -> TrialRecord:
    """The record with its parameters in this search.

    Raises:
        Misfit: it is not in the search.
    """
    params = recorded_params(config, record.config)
    trained, own = record.config.deepspeed, config.deepspeed.config
    if trained and deciding_settings(trained.config) != deciding_settings(own):
        raise Misfit("deepspeed.config", "was trained with another deepspeed.config")
    return record.model_copy(update={"params": params})


def _misfit_fault(field: str, outside: Sequence[tuple[TrialRecord, Misfit]]) -> Fault:
    """One fault for all trials that a field excludes, with the first as an example."""
    (first, misfit), *others = outside
    rule = f"trial {first.number} of this sweep {misfit.reason}"
    if others:
        rule = f"excludes {numbers_text([record for record, _ in outside])}: {rule}"
    return Fault(
        field,
        rule,
        "let the search include that, or give the sweep another name and `warm_start` it from here",
    )


def import_trials(
    config: SweepConfig, inputs: Mapping[str, str], sweep_id: str = ""
) -> tuple[list[TrialRecord], list[str]]:
    """Trials of the `warm_start` sweeps that are in this search, and what was left out.

    Args:
        config: of this sweep.
        inputs: digests of its files by field.
        sweep_id: of this sweep, if it has begun.

    Raises:
        UserError: a folder holds no sweep, or one with another model, data or evaluation, or one
            whose trials are known already; or no trial fits.
    """
    known = {sweep_id}
    faults: list[Fault] = []
    found: list[TrialRecord] = []
    left_out: list[str] = []
    for folder in map(parse_location, config.warm_start):
        ledger = Ledger(folder)
        if not ledger.exists():
            faults.append(Fault("warm_start", f"no sweep in {folder}", "give its own folder"))
        elif (sweep := ledger.sweep()).sweep_id in known:
            rule = f"{folder} is this sweep or one that is named before it, or a copy"
            faults.append(Fault("warm_start", rule, "leave it out: its trials would count twice"))
        elif others := other_questions(sweep, config, inputs):
            remedy = "leave it out, or give model, data and eval as there"
            meaning = "its results mean other things"
            rules = [f"{folder} was started with {other}: {meaning}" for other in others]
            faults += [Fault("warm_start", rule, remedy) for rule in rules]
        else:
            known.add(sweep.sweep_id)
            points, reasons = usable_trials(config, ledger.trials())
            found += points
            left_out += [f"{count} of {folder}: {why}" for why, count in reasons.most_common()]
    if config.warm_start and not (found or faults):
        why = f"left out {left_out[0]}" if left_out else "none there has ended well"
        remedy = "let this sweep's search, training and goals include such trials, or leave it out"
        rule = f"must take a trial at least, got none: {why}"
        faults.append(Fault("warm_start", rule, remedy))
    if faults:
        raise UserError(faults)
    return found, left_out


def usable_trials(
    config: SweepConfig, records: Sequence[TrialRecord]
) -> tuple[list[TrialRecord], Counter[str]]:
    """Another sweep's trials that are in this search, and counts of the others by reason."""
    found = []
    reasons: Counter[str] = Counter()
    for record in records:
        if record.status not in ENDED_WELL or record.confirms is not None:
            continue
        lacking = [metric for metric in goal_metrics(config) if record.metric(metric) is None]
        try:
            if lacking and record.status is TrialStatus.COMPLETE:
                raise Misfit("objectives", f"never logged {lacking[0]}")
            found.append(_placed(config, record))
        except Misfit as misfit:
            reasons[misfit.reason] += 1
    return found, reasons
