"""One report as Markdown, as a whole: its wording is reviewed as a diff of `report.md`.

`UPDATE_SNAPSHOTS=1 pytest tests/unit/report/test_markdown.py` writes the file anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from builders import repeat_of
from synthetic_sweep import SyntheticSweep

from analysis.report.formats import as_markdown
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

SNAPSHOT = Path(__file__).with_name("report.md")
ENDINGS = {
    3: TrialStatus.FAILED,
    5: TrialStatus.DIVERGED,
    9: TrialStatus.STOPPED_EARLY,
    11: TrialStatus.RUNNING,
}


def test_the_report_reads_as_the_snapshot(tmp_path: Path) -> None:
    constraint = {"metric": FORGETTING_MEAN, "operator": "<=", "bound": 0.1}
    sweep = SyntheticSweep(trials=30, items=60, failures=ENDINGS, constraints=(constraint,))
    folder = sweep.write(tmp_path)
    best = Results(open_sweeps(folder)).recommendation
    assert best is not None
    for number, status in enumerate((TrialStatus.COMPLETE,) * 2 + (TrialStatus.DIVERGED,), 100):
        Ledger(folder).write_trial(repeat_of(best.trial, number, {}, status))
    report = as_markdown(Results(open_sweeps(folder)))
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(report, encoding="utf-8")
    assert report == SNAPSHOT.read_text(encoding="utf-8")
