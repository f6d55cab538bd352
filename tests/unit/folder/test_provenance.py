"""What a sweep's record says of where its numbers come from."""

from __future__ import annotations

from trainables.records.sweep_record import Provenance, SweepRecord
from tune.folder.provenance import version_warnings, warned


def test_changed_versions_are_a_warning() -> None:
    """Of packages that compute; until the first ones are back."""

    def start(**versions: str) -> Provenance:
        return Provenance(created=1, command="", git_commit=None, python="", versions=versions)

    first = start(ray="1", trl="1", peft="1")
    sweep = SweepRecord(sweep_id="s", config={}, provenance=first)
    assert not [*version_warnings(sweep)]
    other = start(ray="2", trl="2", peft="1", datasets="1")
    for again in (sweep.started_again({}, other), sweep.started_again({}, first)):
        again = again.started_again({}, other)
        (told,) = version_warnings(again)
        assert told.startswith("the sweep began with trl 1 (now 2): where these ")
        assert warned(again, told).provenance.warnings == (told,)
        assert not [*version_warnings(again.started_again({}, first))]
