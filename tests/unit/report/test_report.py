"""The report's contents: what it says, that it says it safely, and of any sweep."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects
import pytest
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.report.answer import answer
from analysis.report.formats import as_csv, as_json, as_markdown
from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialStatus

MARKUP = '</script><script>alert("x")</script><img src=x onerror=alert(1)> {}'
FAILURES = {
    2: TrialStatus.FAILED,
    3: TrialStatus.DIVERGED,
    7: TrialStatus.OUT_OF_MEMORY,
    9: TrialStatus.STOPPED_EARLY,
}


class Page(HTMLParser):
    """The page's text, charts, and where they are plotted."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.charts, self.plots = "", {}, {}
        self._inside: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "script":
            self._inside = given.get("type", "code")
        if given.get("class") == "plot":
            self.plots[given["id"]] = given["aria-label"]

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = None

    def handle_data(self, data):
        if self._inside == "application/json":
            self.charts |= json.loads(data)
        elif self._inside is None:
            self.text += data


def results_of(sweep: SyntheticSweep, folder) -> Results:
    return Results(open_sweeps([sweep.write(folder)]))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    sweep = SyntheticSweep(trials=30, failures=FAILURES, prompt=MARKUP, reason=MARKUP)
    return results_of(sweep, tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def page(results) -> Page:
    return Page(render(results))


def test_every_chart_is_valid_plotly_and_tells_what_it_shows(page):
    for key, spec in page.charts.items():
        drawn = re.sub(r'"@[\w-]+"', '"#123456"', json.dumps(spec))
        plotly.graph_objects.Figure(json.loads(drawn))
        assert spec["data"], key
        assert len(page.plots[key]) > 30


def test_the_other_formats_hold_the_same(results):
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert len(rows) == 30
    assert {row["status"] for row in rows} >= {"COMPLETE", "FAILED", "DIVERGED"}
    document = json.loads(as_json(results))
    trial = results.recommendation.trial
    assert document["recommended"] == trial.config.trial_id
    assert [p["trial"] for p in document["front"]] == [r.config.trial_id for r in results.front]
    assert 1 < len(results.front) < len(results.complete)
    assert len(document["trials"]) == 30
    assert document["metrics"][FORGETTING_MEAN]["better"] == "min"
    text = as_markdown(results)
    assert f"(trial {trial.number})" in text
    assert not re.search(r"(?<!\\)<[a-z/]", text)
    by_task = text[text.index("## Recipes and capacities") :]
    table = [line for line in by_task.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 1 + len(results.groups)
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (SyntheticSweep(trials=1, full_every=0), "Too few ranks to say which one suffices."),
        (
            SyntheticSweep(trials=2, failures=dict.fromkeys(range(2), TrialStatus.FAILED)),
            "No trial is complete with every objective",
        ),
        (
            SyntheticSweep(trials=4, budget=9, failures={3: TrialStatus.RUNNING}),
            "synthetic is unfinished: 3 of 9 trials ended, 1 running or interrupted.",
        ),
    ],
    ids=["one LoRA trial", "none complete", "unfinished"],
)
def test_pages_of_small_and_unfinished_sweeps_say_what_is_missing(tmp_path, sweep, says):
    results = results_of(sweep, tmp_path)
    page = Page(render(results))
    assert says in " ".join(page.text.split())
    assert page.plots.keys() == page.charts.keys()
    assert as_markdown(results)
    json.loads(as_json(results))


def test_the_command_writes_the_file_it_names(tmp_path, capsys):
    folder = SyntheticSweep(trials=3).write(tmp_path / "sweep")
    for arguments, file in (
        (("--format", "md"), folder / "report.md"),
        (("--to", f"{tmp_path}/new/r.csv"), tmp_path / "new" / "r.csv"),
        (("--to", str(tmp_path)), tmp_path / "report.html"),
        (("--to", f"{tmp_path}/r.txt", "--format", "md"), tmp_path / "r.txt"),
    ):
        assert main(["report", str(folder), *arguments]) == 0
        assert capsys.readouterr().out.strip() == str(file)
        assert file.exists()
    assert (tmp_path / "new" / "r.csv").read_text().startswith("trial_id,")


@pytest.mark.parametrize(
    ("sweep", "to", "facts"),
    [
        ("sweep", "sweep/sweep.json/r.md", ("--to: cannot write", "; name a file")),
        ("sweep", "r.pdf", ("--to: must end in one of .html, .md, .csv, .json, got ", "--format")),
        ("", "r.md", ("SWEEP_DIR: holds no sweep: ", "such as ")),
    ],
)
def test_the_command_refuses_bad_input(tmp_path, capsys, sweep, to, facts):
    SyntheticSweep(trials=1, items=4).write(tmp_path / "sweep")
    assert main(["report", str(tmp_path / sweep), "--to", str(tmp_path / to)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert all(fact in message for fact in facts)


def test_a_reader_who_closes_the_pipe_sees_no_traceback(tmp_path):
    folder = SyntheticSweep(trials=1, items=4).write(tmp_path)
    command = subprocess.Popen(
        [sys.executable, "-m", "analysis", "report", str(folder), "--format", "csv"],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    command.stdout.close()
    with command.stderr as errors:
        assert errors.read() == ""
    assert command.wait() == 1


@pytest.mark.parametrize(("items", "is_certain"), [(40, False), (1000, True)])
def test_a_constraint_that_may_be_kept_by_luck_is_said_to_be(tmp_path, items, is_certain):
    bound = {"metric": FORGETTING_MEAN, "operator": "<=", "bound": 0.1}
    written = SyntheticSweep(trials=12, items=items, constraints=(bound,)).write(tmp_path)
    found = answer(Results(open_sweeps([written])))
    assert found.is_feasible
    assert found.reason.count("without an interval") == 0
    unsure = "Its items do not decide whether it truly keeps forgetting/mean <= 0.1."
    assert (unsure in found.reason) is not is_certain
