"""A sweep's own record: its configuration, and how it came about."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainables.config import Frozen
from trainables.records.schema import BaseRecord, TrialRecord


class Provenance(Frozen):
    """Provenance of one start of a sweep: command, code, versions.

    Attributes:
        warnings: about training settings and memory; the base's record has those about its data.
    """

    created: float
    command: str
    git_commit: str | None
    python: str
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()

    def warnings_with(self, base: BaseRecord) -> list[str]:
        """The warnings of the start and of the base, each once."""
        return [*dict.fromkeys((*base.warnings, *self.warnings))]


class SweepRecord(Frozen):
    """A sweep's own record (`sweep.json`).

    Attributes:
        sweep_id: unique; the W&B group and the first part of every trial's id.
        config: the resolved sweep file, as plain data.
        provenance: of the newest start of the command.
        earlier: those of the previous starts, oldest first.
        inputs: digests of the files that the base was measured with and the data read from, by
            field of the sweep file.
    """

    schema_version: Literal[3] = 3
    sweep_id: str
    config: dict[str, object]
    provenance: Provenance
    earlier: tuple[Provenance, ...] = ()
    inputs: dict[str, str] = Field(default_factory=dict)

    @property
    def created(self) -> float:
        """Time of the first start, seconds since the epoch."""
        return (*self.earlier, self.provenance)[0].created

    def started_again(self, config: dict[str, object], provenance: Provenance) -> SweepRecord:
        """The record of the sweep after it was started again."""
        changes = {
            "config": config,
            "provenance": provenance,
            "earlier": (*self.earlier, self.provenance),
        }
        return self.model_copy(update=changes)

    def origin(self, trial: TrialRecord) -> Provenance:
        """The start that the newest attempt of a trial belongs to."""
        starts = (*self.earlier, self.provenance)
        before = [start for start in starts if start.created <= trial.began]
        return before[-1] if before else starts[0]
