"""Reusing earlier trials: those in the sweep's own folder and those of its warm start.

A sweep file may be edited between two starts of the command. The search and its goals may change as
long as the recorded trials fit them; what may not change is in `config.same_sweep`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from analysis.results.formatting import aims_of
from analysis.results.recommendation import numbers_text
from trainables.errors import Fault, UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import ENDED_WELL, Outcome, TrialRecord, TrialStatus
from trainables.storage.locations import PACKAGE_SCHEME
from trainables.storage.storage import Location, join, parse_location
from tune.config.deepspeed_settings import deciding_settings
from tune.config.input_files import digests
from tune.config.same_sweep import check_same_inputs, check_same_sweep, other_questions
from tune.config.sweep_config import SweepConfig
from tune.search.space import Misfit, params_of

# What `--retry-failed` runs again.
RETRIED = (TrialStatus.FAILED, TrialStatus.CANCELLED, TrialStatus.OUT_OF_MEMORY)
# How a trial ends that the search leaves outside; once it is inside again, it goes on by itself.
LEFT_OUTSIDE = Outcome(
    status=TrialStatus.CANCELLED, reason="the search no longer includes its point"
)


@dataclass(frozen=True)
class EarlierTrials:
    """What a start of the command finds.

    Attributes:
        own: records of all trials of the sweep that are points of its search.
        warm: trials of other sweeps that its search starts from.
        left_out: what those sweeps have besides.
        is_warm_new: whether the sweep has not read those sweeps before.
        outside: trials of the sweep that measured nothing and are no points of its search: they
            are not run again, and no budget counts them.
    """

    own: list[TrialRecord]
    warm: list[TrialRecord]
    left_out: list[str]
    is_warm_new: bool
    outside: list[TrialRecord] = field(default_factory=list)

    def ended(self, retry_failed: bool) -> list[TrialRecord]:
        """The sweep's own trials that count as they are."""
        return [record for record in self.own if not _runs_again(record, retry_failed)]

    def to_go_on(self, retry_failed: bool) -> list[TrialRecord]:
        """The sweep's own trials that are run again, from their checkpoints."""
        return [record for record in self.own if _runs_again(record, retry_failed)]

    def in_words(self) -> list[str]:
        """Which trials the search leaves alone, and how many it starts from of other sweeps."""
        told = []
        if self.outside:
            these = numbers_text(self.outside)
            rule = "measured nothing and outside the search now, so neither counted nor run again"
            told = [f"{rule}: {these}"]
        if self.warm or self.left_out:
            told.append(f"warm_start: took {len(self.warm)} trial(s)")
        return told + [f"warm_start: left out {reason}" for reason in self.left_out]


def _runs_again(record: TrialRecord, retry_failed: bool) -> bool:
    was_begun = record.status is TrialStatus.RUNNING or record.reason == LEFT_OUTSIDE.reason
    return was_begun or (retry_failed and record.status in RETRIED)


def earlier_trials(config: SweepConfig, ledger: Ledger, inputs: Mapping[str, str]) -> EarlierTrials:
    """Read the trials that a sweep goes on from, its own and those of its warm start.

    Args:
        config: of this start.
        ledger: the sweep's; it may be new.
        inputs: digests of the sweep's files by field.

    Raises:
        UserError: the sweep cannot go on from them.
    """
    if config.warm_start and config.sampler == "grid":  # their points would count as run
        rule = "must not be given to a grid, which learns from no trial"
        raise UserError([Fault("warm_start", rule, "leave it out, or take another sampler")])
    own: list[TrialRecord] = []
    outside: list[TrialRecord] = []
    is_warm_new, sweep_id = True, ""
    if ledger.exists():
        sweep = ledger.sweep()
        sweep_id = sweep.sweep_id
        check_same_sweep(sweep.config, config, ledger.folder.location)
        if config.model.name.startswith(PACKAGE_SCHEME) and "model.name" not in sweep.inputs:
            # Earlier versions recorded none of a package.
            inputs = {field: digest for field, digest in inputs.items() if field != "model.name"}
        check_same_inputs(sweep.inputs, inputs)
        records = [_as_far_as_it_came(record, ledger) for record in ledger.trials()]
        own = own_trials(config, records)
        numbers = {record.number for record in own}
        outside = [record for record in records if record.number not in numbers]
        is_warm_new = sweep.config.get("warm_start") != list(config.warm_start)
    if is_warm_new:
        warm, left_out = import_trials(config, inputs, sweep_id)
    else:  # as they were when this sweep first named them
        warm, reasons = usable_trials(config, ledger.warm_start())
        left_out = [f"{n}: {why}" for why, n in reasons.items()]
    return EarlierTrials(own, warm, left_out, is_warm_new, outside)


def trials_as_known(config: SweepConfig, output_dir: Location) -> EarlierTrials:
    """What a start would go on from, as far as that is known without a cluster.

    Raises:
        UserError: the sweep cannot go on from it.
    """
    with suppress(OSError, ValueError):  # no network, or no such store: the sweep itself says so
        ledger = Ledger(join(output_dir, config.name))
        if ledger.exists() or config.warm_start:
            return earlier_trials(config, ledger, digests(config))
    return EarlierTrials([], [], [], is_warm_new=True)


def _as_far_as_it_came(record: TrialRecord, ledger: Ledger) -> TrialRecord:
    """The record with all that the trial has measured, which that of a running one lacks."""
    if record.status is TrialStatus.RUNNING:
        for measurement in ledger.measurements(record.number):
            record = record.after(measurement)
    return record


def own_trials(config: SweepConfig, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """A sweep's own records, under the parameters that its search gives them now.

    All, or none; but trials that measured nothing, such as those of a misspelt value that has been
    mended, are left out where they are outside the search.

    Raises:
        UserError: another trial is outside the search.
    """
    misfits: dict[str, list[tuple[TrialRecord, Misfit]]] = {}
    found = []
    for record in records:
        try:
            found.append(_placed(config, record))
        except Misfit as misfit:
            if record.last or record.status in ENDED_WELL:
                misfits.setdefault(misfit.field, []).append((record, misfit))
    if misfits:
        raise UserError([_misfit_fault(field, outside) for field, outside in misfits.items()])
    return found


def _placed(config: SweepConfig, record: TrialRecord) -> TrialRecord:
    """The record, as a point of this search.

    Raises:
        Misfit: it is none.
    """
    params = params_of(config.search, config.train, record.config)
    trained, own = record.config.deepspeed, config.deepspeed.config
    if trained and deciding_settings(trained.config) != deciding_settings(own):
        raise Misfit("deepspeed.config", "was trained with another deepspeed.config")
    return record.model_copy(update={"params": params})


def _misfit_fault(field: str, outside: Sequence[tuple[TrialRecord, Misfit]]) -> Fault:
    """One for all trials that a field excludes, with the first as an example."""
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
    """Trials of the `warm_start` sweeps that are points of this one, and what was left out.

    Complete trials must have logged every goal. Failed or running trials teach the sampler nothing.

    Args:
        config: of this sweep.
        inputs: digests of its files by field.
        sweep_id: its own, if it has begun.

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
            told = [f"{folder} was started with {other}: {meaning}" for other in others]
            faults += [Fault("warm_start", rule, remedy) for rule in told]
        else:
            known.add(sweep.sweep_id)
            points, reasons = usable_trials(config, ledger.trials())
            found += points
            left_out += [f"{count} of {folder}: {why}" for why, count in reasons.most_common()]
    if config.warm_start and not (found or faults):
        # The search would begin from nothing, as if there were no `warm_start`.
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
    """Another sweep's trials that are points of this one, and counts of the rest by reason."""
    found = []
    reasons: Counter[str] = Counter()
    for record in records:
        if record.status not in ENDED_WELL or record.confirms is not None:
            continue
        lacking = [metric for metric in aims_of(config) if record.metric(metric) is None]
        try:
            if lacking and record.status is TrialStatus.COMPLETE:
                raise Misfit("objectives", f"never logged {lacking[0]}")
            found.append(_placed(config, record))
        except Misfit as misfit:
            reasons[misfit.reason] += 1
    return found, reasons
