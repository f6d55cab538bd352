"""The report's contents: what it says, that it says it safely, and of any sweep."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import plotly.graph_objects
import pytest
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.conclusions import conclude
from analysis.report.answer import answer
from analysis.report.formats import as_csv, as_json, as_markdown
from analysis.report.page import render
from analysis.report.task_section import flips
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MAX,
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
)
from trainables.records.item_records import items_file, write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialStatus

MARKUP = '</script><script>alert("x")</script><img src=x onerror=alert(1)> {}'
FAILURES = {
    2: TrialStatus.FAILED,
    3: TrialStatus.DIVERGED,
    7: TrialStatus.OUT_OF_MEMORY,
    9: TrialStatus.STOPPED_EARLY,
}


class Page(HTMLParser):
    """What a browser would find: text, sections, charts, what is linked and what is loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.charts, self.plots, self.loads = "", {}, {}, []
        self.sections, self.links = [], []
        self._inside: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "script":
            self._inside = given.get("type", "code")
        if given.get("class") == "plot":
            self.plots[given["id"]] = given["aria-label"]
        if tag == "section":
            self.sections.append(given["id"])
        named = [given[name] for name in ("src", "href") if name in given]
        self.links += [name.removeprefix("#") for name in named if name.startswith("#")]
        self.loads += [name for name in named if not name.startswith("#")]

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


def test_the_answer_is_the_recommended_trial_with_its_numbers(results, page):
    trial = results.recommendation.trial
    assert f"Take trial {trial.number}." in page.text
    assert f"{trial.metric(IN_DOMAIN_ACC):.3f}" in page.text
    assert f"{100 * trial.metric(FORGETTING_MEAN):+.1f} points" in page.text
    interval = results.items.interval(trial, IN_DOMAIN_ACC, picked_from=len(results.candidates))
    assert interval.low <= trial.metric(IN_DOMAIN_ACC) <= interval.high
    assert f"95 %: {interval.low:.3f} to {interval.high:.3f}" in page.text


def test_the_other_formats_hold_the_same(results):
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert len(rows) == 30
    assert {row["status"] for row in rows} >= {"COMPLETE", "FAILED", "DIVERGED"}
    document = json.loads(as_json(results))
    trial = results.recommendation.trial
    assert document["recommended"] == trial.config.trial_id
    assert document["front"] == [record.config.trial_id for record in results.front]
    assert 1 < len(results.front) < len(results.complete)
    assert len(document["trials"]) == 30
    assert document["metrics"][FORGETTING_MEAN]["better"] == "min"
    text = as_markdown(results)
    assert f"(trial {trial.number})" in text
    assert not re.search(r"(?<!\\)<[a-z/]", text)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 1 + len(results.groups)
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_the_json_says_how_certain_the_answer_is_and_what_it_cost(tmp_path):
    failed = {3: TrialStatus.FAILED}
    bound = {"metric": FORGETTING_MAX, "operator": "<="}
    for most, is_feasible in ((0.9, True), (-1.0, False)):
        sweep = SyntheticSweep(12, constraints=({**bound, "bound": most},), failures=failed)
        results = results_of(sweep, tmp_path / str(most))
        document = json.loads(as_json(results))
        assert document["feasible"] is is_feasible
        trial, found = results.recommendation.trial, document["answer"]
        for metric in (IN_DOMAIN_ACC, FORGETTING_MEAN, FORGETTING_MAX):
            interval = results.items.interval(trial, metric, found["picked_from"])
            assert found["intervals"][metric] == asdict(interval)
        assert found["picked_from"] == len(results.candidates) == 11
        assert [flip["task"] for flip in found["flips"]] == [
            flip.task for flip in flips(results, trial)
        ]
        assert [cost["label"] for cost in document["costs"]] == [g.label for g in results.groups]
        assert [(one["status"], one["trials"]) for one in document["failures"]] == [
            ("failed", "trial 3")
        ]
    alone = SyntheticSweep(trials=1, failures={0: TrialStatus.FAILED})
    document = json.loads(as_json(results_of(alone, tmp_path / "none")))
    assert (document["feasible"], document["answer"], document["costs"]) == (None, None, [])


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (SyntheticSweep(trials=1, full_every=0), "Too few ranks to say which one suffices."),
        (SyntheticSweep(trials=1, full_every=1), "The recommended trial"),
        (
            SyntheticSweep(trials=2, failures=dict.fromkeys(range(2), TrialStatus.FAILED)),
            "No trial is complete with every objective",
        ),
        (
            SyntheticSweep(trials=4, budget=9, failures={3: TrialStatus.RUNNING}),
            "synthetic is unfinished: 3 of 9 trials ended, 1 running or interrupted.",
        ),
        (SyntheticSweep(trials=6, ranks=(8,)), "Too few LoRA trials to say"),
    ],
    ids=["one LoRA trial", "one full trial", "none complete", "unfinished", "one rank"],
)
def test_small_and_unfinished_sweeps_have_a_page_that_says_what_is_missing(tmp_path, sweep, says):
    results = results_of(sweep, tmp_path)
    page = Page(render(results))
    assert says in " ".join(page.text.split())
    assert page.plots.keys() == page.charts.keys()
    assert as_markdown(results)
    json.loads(as_json(results))


def test_a_sweep_without_items_or_with_metrics_that_were_never_measured_has_a_page(tmp_path):
    folder = SyntheticSweep(trials=8).write(tmp_path)
    ledger = Ledger(folder)
    for record in ledger.trials():
        metrics = {k: v for k, v in record.last.metrics.items() if not k.startswith("ood/")}
        metrics["forgetting/sorting"] = float("nan")
        last = Measurement(step=record.last.step, metrics=metrics, time=0)
        ledger.folder.trial_json(record.number).write_text(
            record.model_copy(update={"last": last}).model_dump_json()
        )
        for file in ledger.folder.attempt(record.number, 1).rglob("*.jsonl"):
            file.unlink()
    page = Page(render(Results(open_sweeps([folder]))))
    assert page.plots.keys() == page.charts.keys()
    assert "NaN" not in json.dumps(page.charts)


def test_a_trial_is_told_with_the_start_that_it_ran_in(tmp_path):
    folder = SyntheticSweep(trials=4).write(tmp_path)
    ledger = Ledger(folder)
    record = ledger.sweep()
    changes = {"created": 1.8e9, "git_commit": "4567def", "warnings": ("a large batch",)}
    later = record.provenance.model_copy(update=changes)
    changes = {"created": 1.9e9, "git_commit": "89abcde", "warnings": ("no trial of this",)}
    idle = later.model_copy(update=changes)
    for start in (later, idle):
        record = record.started_again(record.config, start)
    ledger.write_sweep(record)
    ledger.write_trial(ledger.trials()[3].model_copy(update={"resumed": 1.8e9 + 1}))
    [sweep] = open_sweeps([folder])
    told = [(o.git_commit, [t.number for t in trials]) for o, trials in sweep.origins]
    assert told == [("0123abc", [0, 1, 2]), ("4567def", [3])]
    page = Page(render(Results([sweep])))
    assert "\n    2023-11-14 22:13 UTC\n" in page.text  # of the first start alone
    assert "trials 0, 1, 2" in page.text
    assert "4567def" in page.text.partition("a large batch")[0]
    assert "89abcde" not in page.text
    assert "no trial of this" not in page.text
    assert sweep.record.created == 1.7e9


def test_the_answer_claims_no_forgetting_that_the_conclusions_leave_open(tmp_path):
    """Five items forgotten and none gained: McNemar's test does not tell that from chance."""
    ledger = Ledger(SyntheticSweep(trials=1, full_every=0).write(tmp_path))
    [record] = ledger.trials()
    items, forgotten = ledger.base_items(), {"capitals": 2, "crafts": 2, "sorting": 1}
    for index, item in enumerate(items):
        if item.score == 1 and forgotten.get(item.task):
            forgotten[item.task] -= 1
            items[index] = item.model_copy(update={"score": 0.0})
    write_items(items_file(ledger.folder.attempt(0, 1), record.last.step), items)
    results = Results(open_sweeps([tmp_path]))
    told = next(c for c in conclude(results) if "on the retention tasks" in c.statement)
    assert (told.verdict, told.statement) == (
        "open", "Its change on the retention tasks cannot be distinguished from none.",
    )  # fmt: skip
    interval = results.items.interval(results.complete[0], FORGETTING_MEAN, picked_from=1)
    assert interval.low == 0
    assert interval.estimate == pytest.approx(5 / 120)


def test_the_command_writes_the_file_it_names_and_exits_2_on_bad_input(tmp_path, capsys):
    folder = SyntheticSweep(trials=3).write(tmp_path / "sweep")
    assert main(["report", str(folder), "--format", "md"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.md")
    assert main(["report", str(folder), "--to", str(tmp_path / "new" / "r.csv")]) == 0
    assert (tmp_path / "new" / "r.csv").read_text().startswith("trial_id,")
    capsys.readouterr()
    assert main(["report", str(folder), "--to", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()
    assert main(["report", str(folder), "--to", f"{tmp_path}/newer/"]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path}/newer/report.html\n")
    assert main(["report", str(folder), "--to", "/dev/stdout", "--format", "csv"]) == 0
    assert main(["report", str(folder), "--to", str(folder / "sweep.json" / "r.md")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --to: cannot write")
    assert told.endswith("; name a file that can be written, such as --to ~/report.md\n")
    pdf = tmp_path / "r.pdf"
    assert main(["report", str(folder), "--to", str(pdf)]) == 2
    told = f"--to: must end in one of .html, .md, .csv, .json, got {pdf}; or give --format"
    assert told in capsys.readouterr().err
    assert not pdf.exists()
    assert main(["report", str(folder), "--to", str(tmp_path / "r.txt"), "--format", "md"]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: SWEEP_DIR: holds no sweep: {tmp_path}; "
        f"give a folder with a sweep.json, such as {folder}\n"
    )


@pytest.mark.parametrize(("items", "is_certain"), [(40, False), (1000, True)])
def test_a_constraint_that_may_be_kept_by_luck_is_said_to_be(tmp_path, items, is_certain):
    bound = {"metric": FORGETTING_MEAN, "operator": "<=", "bound": 0.1}
    written = SyntheticSweep(trials=12, items=items, constraints=(bound,)).write(tmp_path)
    found = answer(Results(open_sweeps([written])))
    assert found.is_feasible
    unsure = "Its items do not decide whether it truly keeps forgetting/mean <= 0.1."
    assert (unsure in found.reason) is not is_certain
