"""Property tests: whatever a crash or a bad disk does to the last record, the others are read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from builders import measurement, record_sweep, trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.watch import WatchedSweep
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.metrics_file import read_lines, to_line
from trainables.records.schema import Measurement
from trainables.storage.storage import Location

HISTORIES = st.lists(
    st.dictionaries(st.text(min_size=1), st.floats(-1e9, 1e9), max_size=4), min_size=1, max_size=4
).map(
    lambda written: [
        Measurement(step=step, metrics=metrics, time=1.0) for step, metrics in enumerate(written)
    ]
)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def start_of_last_line(content: bytes) -> int:
    return content.rstrip(b"\n").rfind(b"\n") + 1


@settings(max_examples=30)
@given(HISTORIES, st.data())
def test_any_flipped_bit_of_the_last_line_is_seen_and_costs_no_other_line(
    written: list[Measurement], data: st.DataObject
) -> None:
    content = b"".join(map(to_line, written))
    first = start_of_last_line(content)
    # The line's own end aside: without it the line is still whole.
    bit = data.draw(st.integers(8 * first, 8 * (len(content) - 1) - 1))
    found = read_lines(flipped(content, bit), "metrics.jsonl")
    assert found.measurements == written[:-1]
    assert found.whole == content[:first]


@contextmanager
def fresh(kind: str, bucket: str) -> Iterator[Location]:
    """A place of its own for one example."""
    if kind == "s3":
        yield f"{bucket}/{uuid4().hex}"
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def damage_last(ledger: Ledger, new: bytes) -> None:
    """Put other bytes in place of the newest line of trial 0."""
    if isinstance(ledger.folder.location, Path):
        file = ledger.folder.metrics(0)
        content = file.read_bytes()
        file.write_bytes(content[: start_of_last_line(content)] + new)
    else:
        newest = ledger.storage.children("trials/0000/metrics")[-1]
        ledger.storage.write(f"trials/0000/metrics/{newest}", new)


@pytest.mark.parametrize("kind", ["disk", "s3"])
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_driver_after_a_damaged_line_reads_the_others_and_writes_on(
    kind: str, bucket: str, data: st.DataObject
) -> None:
    with fresh(kind, bucket) as location:
        before = Ledger(location)
        for step in (5, 10, 15):
            before.append(0, measurement(step))
        line = to_line(measurement(15))
        damaged = data.draw(
            st.one_of(
                st.integers(0, len(line) - 2).map(lambda cut: line[:cut]),
                st.integers(0, 8 * (len(line) - 1) - 1).map(lambda bit: flipped(line, bit)),
            )
        )
        damage_last(before, damaged)
        assert Ledger(location).measurements(0) == [measurement(5), measurement(10)]
        after = Ledger(location)
        after.append(0, measurement(15, attempt=2))
        wanted = [measurement(5), measurement(10), measurement(15, attempt=2)]
        assert Ledger(location).measurements(0) == wanted


def test_hostile_records_are_refused_with_a_message(tmp_path: Path) -> None:
    """As who sends a folder may have made it."""
    ledger = record_sweep(tmp_path, trial(0))
    for name in ("\u00b2", "\u0663"):  # digits to Python: a superscript, and Arabic ones
        shutil.copytree(ledger.folder.trial(0), tmp_path / "trials" / name)
    assert [record.number for record in ledger.trials()] == [0]
    assert [record.number for record in WatchedSweep(tmp_path).refresh()] == [0]
    file = ledger.folder.trial_json(0)
    content = file.read_text()
    file.write_text(content.replace('"attempt": 1', '"attempt": 2000000000', 1))
    with pytest.raises(UserError, match="attempt must be less than or equal to 100000, got 2000"):
        ledger.trials()
    file.write_text("[" * 100_000)
    with pytest.raises(
        UserError, match=r"trial.json: is not JSON: recursion limit exceeded at line 1"
    ):
        ledger.trials()
