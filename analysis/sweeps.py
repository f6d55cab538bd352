"""Sweeps read from disk: records, base, goals and progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from analysis.results.confirmation import missing_repeats, repeats_to_begin
from analysis.results.formatting import NOT_ENDED, how_many
from analysis.results.recommendation import Recommendation, recommend
from analysis.sweep_settings import SweepSettings
from trainables.config import ModelConfig
from trainables.errors import Fault, UserError, collecting, first_line
from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Measurement, TrialRecord, TrialStatus
from trainables.records.sweep_record import Provenance, SweepRecord
from trainables.storage.storage import Location, parse_location


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Attributes:
        ledger: reads what is too large to keep in memory, such as items.
        trials: every trial by number, including failed ones and repeats with other seeds.
        histories: measurements by trial number, in order of their steps.
        shares_its_name: whether another sweep that is shown with it has the same name.
    """

    ledger: Ledger
    record: SweepRecord
    base: BaseRecord
    trials: tuple[TrialRecord, ...]
    histories: Mapping[int, Sequence[Measurement]]
    shares_its_name: bool = False

    @property
    def name(self) -> str:
        """As in the sweep file."""
        return self.settings.name

    @property
    def title(self) -> str:
        """What to call it among those shown: its name or, if that is not enough, its unique id."""
        return self.record.sweep_id if self.shares_its_name else self.name

    @cached_property
    def settings(self) -> SweepSettings:
        """The resolved sweep file."""
        return SweepSettings.of(self.record)

    @cached_property
    def model(self) -> ModelConfig:
        """The base model."""
        return ModelConfig.model_validate(self.record.config["model"])

    @property
    def origins(self) -> list[tuple[Provenance, list[TrialRecord]]]:
        """Starts of the command, each with the trials whose newest attempt it began."""
        found: dict[float, tuple[Provenance, list[TrialRecord]]] = {}
        for trial in self.trials:
            origin = self.record.origin(trial)
            found.setdefault(origin.created, (origin, []))[1].append(trial)
        return [found[created] for created in sorted(found)]

    @cached_property
    def unfinished(self) -> str | None:
        """What is missing, such as `3 of 16 trials ended, 1 running or interrupted`; else None."""
        search = [record for record in self.trials if record.confirms is None]
        ended = sum(record.status is not TrialStatus.RUNNING for record in search)
        running = len(search) - ended
        repeats = sum(record.status is TrialStatus.RUNNING for record in self.trials) - running
        asked = self._asked or ended
        missing = self._to_begin if self._asked is not None and ended >= asked else 0
        parts = [f"{running} {NOT_ENDED}"] if running else []
        parts += [f"{how_many(repeats, 'repeat')} {NOT_ENDED}"] if repeats else []
        parts += [f"{how_many(missing, 'repeat')} missing"] if missing else []
        if ended >= asked and not parts:
            return None
        return ", ".join([f"{ended} of {asked} trials ended", *parts])

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The trial to take; None if no complete one has every objective."""
        return recommend(self.settings, self.trials)

    def missing_repeats(self, whose: str = "") -> str:
        """How many repeats the answer lacks, as of `confirmation.missing_repeats`."""
        return missing_repeats(self.trials, self._to_begin, whose)

    @cached_property
    def _to_begin(self) -> int:
        """Repeat runs of the winners that have yet to begin."""
        return repeats_to_begin(self.settings, self.trials)

    @property
    def _asked(self) -> int | None:
        """How many trials the search must have; None if it may legitimately end with fewer."""
        budget = self.settings.budget
        if self.settings.sampler == "grid" or (budget.hours or budget.gpu_hours) is not None:
            return None
        return budget.trials


def open_sweeps(sweep_dirs: Location | Sequence[Location]) -> list[Sweep]:
    """Read sweeps that can be shown together: of one base model, evaluated on the same items.

    Args:
        sweep_dirs: the sweeps' folders, or one.

    Raises:
        UserError: lists everything that prevents it: folders without a sweep, damaged records, a
            base that is not evaluated yet, no trials, different models or evaluations, two copies
            of one sweep.
    """
    sweeps: list[Sweep] = []
    faults: list[Fault] = []
    given = [sweep_dirs] if isinstance(sweep_dirs, str | Path) else sweep_dirs
    parsed = [parse_location(each) if isinstance(each, str) else each for each in given]
    for sweep_dir in dict.fromkeys(parsed):
        with _collecting(faults, str(sweep_dir)):
            sweeps.append(_open(sweep_dir))
    for sweep in sweeps[1:]:
        with _collecting(faults, _folders(sweeps[0], sweep)):
            faults += _differences(sweeps[0], sweep)
    faults += _copies(sweeps)
    if faults:
        raise UserError(list(dict.fromkeys(faults)))
    names = Counter(sweep.name for sweep in sweeps)
    return [replace(sweep, shares_its_name=names[sweep.name] > 1) for sweep in sweeps]


@contextmanager
def _collecting(faults: list[Fault], folders: str) -> Iterator[None]:
    """Add to the faults what prevents that folders are read."""
    try:
        with collecting(faults):
            yield
    except (OSError, ValueError) as error:  # the latter also pyarrow's
        faults.append(Fault("SWEEP_DIR", f"cannot be read: {folders} ({first_line(error)})"))


def no_sweep(sweep_dir: Location, rule: str = "holds no sweep") -> Fault:
    """The fault of a folder without a sweep; names one within it, or of its name in `sweeps`."""
    remedy = "give a folder with a sweep.json"
    if isinstance(sweep_dir, Path):
        found = [*sweep_dir.glob("*/sweep.json"), *Path("sweeps").glob("*/sweep.json")]
        near = [
            f.parent for f in found if sweep_dir in f.parents or f.parent.name == sweep_dir.name
        ]
        remedy += f", such as {min(near)}" if near else ""
    return Fault("SWEEP_DIR", f"{rule}: {sweep_dir}", remedy)


def open_ledger(sweep_dir: Location) -> Ledger:
    """The ledger of a folder that must hold a sweep."""
    ledger = Ledger(sweep_dir)
    if not ledger.exists():
        raise UserError([no_sweep(sweep_dir)])
    return ledger


def check_trust(trials: Iterable[TrialRecord], trust_remote_code: bool) -> None:
    """Refuse code that models bring unless the reader trusts it: the folder may be another's.

    Raises:
        UserError: it is not trusted, and a trial's model may run its own.
    """
    names = {record.config.model.name for record in trials if record.config.model.trust_remote_code}
    if names and not trust_remote_code:
        rule = f"is true in the sweep's record: code that comes with {', '.join(sorted(names))} "
        remedy = "give --trust-remote-code if you trust it, and who made this folder"
        raise UserError([Fault("model.trust_remote_code", f"{rule}may run or be copied", remedy)])


def _open(sweep_dir: Location) -> Sweep:
    ledger = open_ledger(sweep_dir)
    record, trials, found = ledger.sweep(), ledger.trials(), ledger.histories()
    # A trial's folder may be deleted meanwhile, to have it run again.
    histories = {trial.number: found.get(trial.number, []) for trial in trials}
    if not trials:
        raise UserError([Fault("SWEEP_DIR", f"has no trial yet: {sweep_dir}")])
    if not ledger.has_base():
        raise UserError([Fault("SWEEP_DIR", f"the base model is not evaluated yet: {sweep_dir}")])
    newest = tuple(trial.with_newest(histories[trial.number]) for trial in trials)
    return Sweep(ledger, record, ledger.base(), newest, histories)


def _differences(first: Sweep, other: Sweep) -> list[Fault]:
    """Why two sweeps cannot be shown together."""
    folders = _folders(first, other)
    models = [_model_in_words(sweep.model) for sweep in (first, other)]
    if models[0] != models[1]:
        rule = f"{folders} have different base models, {models[0]} and {models[1]}"
        return [Fault("SWEEP_DIR", rule, "make one report for each model")]
    # Versions of libraries are part of the key, and may differ where the scores do not.
    if first.base.scores_key != other.base.scores_key and first.base.scores != other.base.scores:
        rule = f"{folders} have different evaluations"
        remedy = "their scores do not compare; make one report for each"
        return [Fault("SWEEP_DIR", rule, remedy)]
    return []


def _copies(sweeps: Sequence[Sweep]) -> list[Fault]:
    """Folders with a sweep that is given already: its trials would count twice."""
    faults = []
    originals: dict[str, Sweep] = {}
    for sweep in sweeps:
        original = originals.setdefault(sweep.record.sweep_id, sweep)
        if original is not sweep:
            rule = f"{_folders(original, sweep)} are copies of one sweep, {sweep.record.sweep_id}"
            faults.append(Fault("SWEEP_DIR", rule, "give one of them"))
    return faults


def _folders(first: Sweep, other: Sweep) -> str:
    return f"{first.ledger.folder.location} and {other.ledger.folder.location}"


def bases(sweeps: Sequence[Sweep], *metrics: str) -> dict[tuple[float, ...], str]:
    """Values of these metrics that the base has, with its name: in several sweeps it may differ.

    Its scores are the same in all, but not what was measured on rows that each held out.
    """
    found: dict[tuple[float, ...], list[str]] = {}
    for sweep in sweeps:
        own = sweep.base.metrics
        if own.keys() >= set(metrics):
            found.setdefault(tuple(own[metric] for metric in metrics), []).append(sweep.title)
    if len(found) == 1:
        return dict.fromkeys(found, "base")
    return {values: f"base of {', '.join(titles)}" for values, titles in found.items()}


def _model_in_words(model: ModelConfig) -> str:
    name = f"{model.name}@{model.revision}" if model.revision else model.name
    return f"{name} in 4 bits" if model.load_in_4bit else name
