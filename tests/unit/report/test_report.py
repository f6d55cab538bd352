"""The report's contents: what it says, that it says it safely, and of any sweep."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tracemalloc
from dataclasses import asdict
from html.parser import HTMLParser
from types import SimpleNamespace

import plotly.graph_objects
import pytest
import scipy.stats
from builders import change_base, repeat_of, sweep_config, trial, with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.conclusions import conclude
from analysis.paper_table import Cell, cell_text, paper_table
from analysis.report.answer import answer
from analysis.report.formats import as_csv, as_json, as_markdown
from analysis.report.page import render
from analysis.report.settings_section import importance_figure, importance_lacking
from analysis.report.task_section import flips
from analysis.report.trade_off_section import _box, hypervolume_shares
from analysis.results.formatting import NAMES
from analysis.results.pareto import pareto_front
from analysis.shown_sweeps import Results
from analysis.stats.intervals import Interval
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MAX,
    FORGETTING_MEAN,
    GPU_HOURS,
    IN_DOMAIN_ACC,
    KL_BASE_TO_TUNED,
)
from trainables.records.item_records import items_file, read_items, write_items
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


def test_the_page_has_every_section_and_a_chart_for_each_place(page):
    for heading in (
        "What the data say",
        "The trade-off",
        "How much rank",
        "Learning rate and rank",
        "Methods and ranks, task by task",
        "All settings at once",
        "Learning and forgetting over time",
        "What was forgotten, what was gained",
        "item by item",
        "What it cost",
        "What did not run to its end",
        "Where this comes from",
    ):
        assert heading in page.text
    assert page.plots.keys() == page.charts.keys()
    assert len(page.plots) >= 16


def test_a_page_without_importances_says_what_they_lack(tmp_path):
    few = results_of(SyntheticSweep(trials=9, full_every=0), tmp_path / "few")
    assert importance_lacking(few).endswith("whose settings and results differ; there are 9.")
    ledger = Ledger(SyntheticSweep(trials=12, full_every=0).write(tmp_path / "alike"))
    first = ledger.trials()[0].config
    for record in ledger.trials():
        alike = first.model_copy(update={"number": record.number})
        ledger.write_trial(record.model_copy(update={"config": alike}))
    results = Results(open_sweeps([tmp_path / "alike"]))
    assert importance_figure(results) is None
    assert importance_lacking(results).endswith("there are 12 alike.")


def test_the_contents_lead_to_every_section_that_the_page_has(page, tmp_path):
    assert page.sections[0] == "answer"
    assert page.links == page.sections[1:]
    assert len(page.links) == 15
    small = Page(render(results_of(SyntheticSweep(trials=1, full_every=1), tmp_path)))
    assert small.links == small.sections[1:]
    assert "ranks" not in small.links


def test_a_role_is_called_alike_wherever_it_stands(results):
    html = render(results)
    assert ">OOD<" in html
    assert ">ood<" not in html


def test_every_chart_is_valid_plotly_and_tells_what_it_shows(page):
    for key, spec in page.charts.items():
        drawn = re.sub(r'"@[\w-]+"', '"#123456"', json.dumps(spec))
        plotly.graph_objects.Figure(json.loads(drawn))
        assert spec["data"], key
        assert len(page.plots[key]) > 30


def test_texts_of_the_sweep_stay_texts(results, page):
    html = render(results)
    assert "<img src=x" not in html
    assert 'alert("x")</script>' not in html
    assert "onerror=alert(1)" in page.text
    assert page.loads == []


def test_the_answer_is_the_recommended_trial_with_its_numbers(results, page):
    trial = results.recommendation.trial
    assert f"Take trial {trial.number}." in page.text
    assert f"{trial.metric(IN_DOMAIN_ACC):.3f}" in page.text
    assert f"{100 * trial.metric(FORGETTING_MEAN):+.1f} points" in page.text
    interval = results.items.interval(trial, IN_DOMAIN_ACC, picked_from=len(results.candidates))
    assert interval.low <= trial.metric(IN_DOMAIN_ACC) <= interval.high
    assert f"95 %: {interval.low:.3f} to {interval.high:.3f}" in page.text


def test_full_fine_tuning_beside_the_answer_is_named_for_what_it_was_picked_by(results, page):
    """Another of its trials may well be better in one number."""
    full = results.full(results.sweeps[0])
    values = [record.metric(FORGETTING_MEAN) for record in full.trials]
    assert full.best.metric(FORGETTING_MEAN) > min(values)
    points = f"{100 * full.best.metric(FORGETTING_MEAN):+.1f} points"
    told = f"full fine-tuning at its best trade-off: {points}"
    assert told in page.text
    assert told in as_markdown(results)
    band = f"The band is full fine-tuning at its best trade-off (trial {full.best.number})"
    assert band in page.text


def test_the_pareto_chart_rings_the_front(results, page):
    ring = next(
        trace
        for trace in page.charts["trade-off-0"]["data"]
        if trace["marker"].get("symbol") == "circle-open" and trace["marker"]["size"] == 16
    )
    front = pareto_front(results.goals, results.complete)
    assert [r for r in results.search_trials if results.is_on_front(r)] == front
    assert ring["y"] == [record.metric(IN_DOMAIN_ACC) for record in front]
    assert ring["x"] == [record.metric(FORGETTING_MEAN) for record in front]


def test_failures_are_told_with_their_reasons(page):
    for status in ("failed", "diverged", "out of memory", "stopped early"):
        assert status in page.text


def test_the_hypervolume_never_falls(results):
    shares = hypervolume_shares(results, results.sweeps[0])
    assert len(shares) == len(results.complete)
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1


def test_the_hypervolume_is_no_larger_for_a_trial_that_forgot_everything():
    """Nor is the best or the worst of the box, which includes the base and the whole front."""
    goals = sweep_config()
    draw = random.Random(0)
    places = [draw.random() for _ in range(24)]
    trials = [
        trial(n, {IN_DOMAIN_ACC: 0.5 + 0.2 * x, FORGETTING_MEAN: 0.02 + 0.08 * x * x})
        for n, x in enumerate(places)
    ]
    bad = trial(24, {IN_DOMAIN_ACC: 0.05, FORGETTING_MEAN: 0.9})
    base = SimpleNamespace(metrics={IN_DOMAIN_ACC: 0.3, FORGETTING_MEAN: 0.0})
    shares = []
    for complete in (trials, [*trials, bad]):
        results = SimpleNamespace(
            goals=goals,
            complete=complete,
            front=pareto_front(goals, complete),
            sweeps=[SimpleNamespace(base=base, title="tiny")],
            of=lambda sweep, records: records,
        )
        assert _box(results)[0] == pytest.approx((-0.5 - 0.2 * max(places), -0.3))
        assert _box(results)[1] == pytest.approx((0.0, 0.02 + 0.08 * max(places) ** 2))
        shares.append(hypervolume_shares(results, None))
    assert shares[1] == [*shares[0], shares[0][-1]]


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


def test_of_the_trials_that_are_compared_scores_stay_in_memory_and_texts_do_not(tmp_path):
    folder = SyntheticSweep(trials=6, items=20, prompt="word " * 1000 + "{}").write(tmp_path)
    results = Results(open_sweeps([folder]))
    first, *others = results.complete
    tasks = list(results.tasks("retention"))
    results.items.compare(first, None, tasks, 1)  # reads what all comparisons need of the base
    size = len(items_file(results.sweeps[0].ledger.folder.attempt(1, 1), 100).read_bytes())
    tracemalloc.start()
    try:
        for trial in others:
            assert results.items.compare(trial, None, tasks, 1) is not None
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < size / 2


def without_other_roles(folder) -> None:
    """Leave only what was measured in the domain."""

    def kept(metrics):
        others = ("retention/", "ood/", "forgetting", "flips/")
        return {key: value for key, value in metrics.items() if not key.startswith(others)}

    ledger = Ledger(folder)
    base = ledger.base()
    scores = {task: score for task, score in base.scores.items() if score.role == "in_domain"}
    change_base(ledger, scores=scores, metrics=kept(base.metrics))
    for record in ledger.trials():
        ledger.write_trial(with_metrics(record, kept(record.last.metrics)))
    for file in [ledger.folder.base_items, *folder.glob("trials/*/attempt_1/items/*.jsonl")]:
        write_items(file, [item for item in read_items(file) if item.task in scores])


def test_a_sweep_that_measures_nothing_besides_the_domain_has_a_page(tmp_path):
    goals = ({"metric": IN_DOMAIN_ACC, "mode": "max"},)
    without_other_roles(SyntheticSweep(trials=12, objectives=goals).write(tmp_path))
    results = Results(open_sweeps([tmp_path]))
    page = Page(render(results))
    assert page.plots.keys() == page.charts.keys()
    assert "Each point is a trial" not in page.text
    assert "hypervolume" in page.plots
    assert as_markdown(results)
    json.loads(as_json(results))


def test_many_hours_are_written_without_an_exponent_and_nothing_without_its_brackets(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=2, full_every=0).write(tmp_path))
    for record in ledger.trials():
        metrics = {**record.last.metrics, GPU_HOURS: 617.25}
        ledger.write_trial(with_metrics(record, metrics, started=1.6e9))
    ledger.folder.base_items.unlink()  # so that nothing is known beside the forgetting itself
    results = Results(open_sweeps([tmp_path]))
    text, page = as_markdown(results), Page(render(results)).text
    assert "2 trials, 1,234 GPU-hours of training and evaluation." in text
    assert "GPU-hours of training and evaluation, all trials" in page
    assert "wall-clock of all trials, added up" in page  # in slots they take longer than in turn
    assert "GPU-hours leave out loading the model, the final save, and work that was lost" in page
    costs = page.partition("What it cost")[2].partition("peak GiB")[0]
    assert "tokens/s per GPU, on CPUs per worker" in costs
    assert "1,234" in page
    assert "55,556 h" in page
    assert re.search(r"- forgetting \*\*.* points\*\*\n", text)


def test_several_sweeps_have_one_page(tmp_path):
    folders = [
        SyntheticSweep(trials=8, name=name, seed=seed).write(tmp_path / name)
        for seed, name in enumerate(("one", "two"))
    ]
    # The same base: as the cache of a real base gives it to both.
    items = (folders[0] / "base" / "items.jsonl").read_bytes()
    (folders[1] / "base" / "items.jsonl").write_bytes(items)
    record = Ledger(folders[0]).sweep()
    later = record.provenance.model_copy(update={"created": record.created + 86400})
    Ledger(folders[0]).write_sweep(record.model_copy(update={"provenance": later}))
    results = Results(open_sweeps(folders))
    page = Page(render(results))
    assert "one, two" in page.text
    assert "2023-11-14 22:13 UTC to 2023-11-15 22:13 UTC\n" in page.text
    assert results.recommendation is not None
    assert f"Take trial {results.recommendation.trial.number} of " in page.text


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


def test_the_page_names_the_commit_that_trials_began_from(tmp_path):
    folder = SyntheticSweep(trials=1).write(tmp_path)
    change_base(Ledger(folder), revision="0a1b2c")
    assert ", 0a1b2c, 1,000,000 parameters" in Page(render(Results(open_sweeps([folder])))).text


def test_the_page_has_what_was_told_of_the_data_and_of_the_training(tmp_path):
    folder = SyntheticSweep(trials=1).write(tmp_path)
    assert "warning" not in Page(render(Results(open_sweeps([folder])))).text
    ledger = Ledger(folder)
    change_base(ledger, warnings=("at chance", "at chance"))
    record = ledger.sweep()
    start = record.provenance.model_copy(update={"warnings": ("at chance", "few <samples>")})
    ledger.write_sweep(record.model_copy(update={"provenance": start}))
    text = Page(render(Results(open_sweeps([folder])))).text
    assert text.count("warning") == 2
    of_data, _, of_start = text.partition("start of")
    assert "warningat chance" in of_data
    assert "warningfew <samples>" in of_start


def test_the_answer_tells_what_repeats_of_it_came_to(tmp_path):
    folder = SyntheticSweep(trials=1).write(tmp_path)  # no other can take its place
    ledger = Ledger(folder)
    chosen = Results(open_sweeps([folder])).recommendation.trial
    endings = {100: (TrialStatus.COMPLETE, 0.6), 101: (TrialStatus.COMPLETE, 0.7)}
    for number, (status, accuracy) in {**endings, 102: (TrialStatus.DIVERGED, 0.1)}.items():
        ledger.write_trial(repeat_of(chosen, number, {IN_DOMAIN_ACC: accuracy}, status))
    low, high = scipy.stats.t.interval(0.95, 1, loc=0.65, scale=0.05)
    assert high > 1  # which no accuracy can be
    page = Page(render(Results(open_sweeps([folder]))))
    assert f"over seeds: 0.650 ({low:.3f} to 1.000, n = 2), 1 of 3 diverged" in page.text
    assert "taken from several by its very means over seeds" in page.text
    assert page.text.count("1 trial and 3 repeats") == 3  # at the top, of the cost, of the table


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
        "open", "Its change on the retention tasks cannot be told from none.",
    )  # fmt: skip
    interval = results.items.interval(results.complete[0], FORGETTING_MEAN, picked_from=1)
    assert interval.low == 0
    assert interval.estimate == pytest.approx(5 / 120)


def test_what_the_page_says_of_the_recommended_trial_allows_for_its_having_been_picked(tmp_path):
    """Eight items forgotten and none gained: of one trial that would be shown, of 20 it is not."""
    ledger = Ledger(SyntheticSweep(trials=20).write(tmp_path))
    trial = Results(open_sweeps([tmp_path])).recommendation.trial
    items, forgotten = ledger.base_items(), 8
    for index, item in enumerate(items):
        if item.score == 1 and item.task == "capitals" and forgotten:
            forgotten -= 1
            items[index] = item.model_copy(update={"score": 0.0})
    write_items(items_file(ledger.folder.attempt(trial.number, 1), trial.last.step), items)
    results = Results(open_sweeps([tmp_path]))
    assert results.items.interval(trial, FORGETTING_MEAN, picked_from=1).excludes_0
    (told,) = (n.interval for n in answer(results).numbers if n.name == NAMES[FORGETTING_MEAN])
    assert re.fullmatch(r"-\d+\.\d to \+\d+\.\d, n = 120, simultaneous over 20 trials", told)
    found = {flip.task: flip for flip in flips(results, trial)}
    assert (found["capitals"].forgotten, found["capitals"].gained) == (8, 0)
    assert min(flip.p_value for flip in found.values()) >= 0.05


@pytest.mark.parametrize("kind", ["html", "md", "csv", "json"])
def test_a_link_in_a_sweep_s_folder_is_replaced_not_followed(tmp_path, kind):
    """Who sent the folder may mean a file of the reader's, such as a shell's start file."""
    folder = SyntheticSweep(trials=3).write(tmp_path / "sweep")
    (own := tmp_path / "own").write_text("mine")
    (folder / f"report.{kind}").symlink_to(own)
    assert main(["report", str(folder), "--format", kind]) == 0
    assert own.read_text() == "mine"
    assert not (folder / f"report.{kind}").is_symlink()
    (named := tmp_path / f"link.{kind}").symlink_to(own)  # the reader's own
    assert main(["report", str(folder), "--to", str(named)]) == 0
    assert named.is_symlink()
    assert own.read_text() == (folder / f"report.{kind}").read_text()


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


def test_a_sweep_named_without_its_folder_is_suggested(tmp_path, capsys, monkeypatch):
    SyntheticSweep(trials=1).write(tmp_path / "sweeps" / "mine")
    monkeypatch.chdir(tmp_path)
    for command in (["report"], ["watch", "--once"], ["inspect"]):
        assert main([*command, "mine"]) == 2
        assert capsys.readouterr().err.endswith("a sweep.json, such as sweeps/mine\n")


def test_a_row_whose_best_trial_breaks_a_constraint_says_so(tmp_path):
    bound = {"metric": IN_DOMAIN_ACC, "operator": ">=", "bound": 0.7}
    results = results_of(SyntheticSweep(trials=16, constraints=(bound,)), tmp_path)
    table, marked = paper_table(results), " (breaks a constraint)"
    broken = {g.label: g.best.metric(IN_DOMAIN_ACC) < 0.7 for g in results.groups}
    assert set(broken.values()) == {True, False}
    labels = [f"{label}{marked if is_broken else ''}" for label, is_broken in broken.items()]
    assert [row[0] for row in table.texts()[1:]] == ["base", *labels]
    told = dict(table.frame().groupby("row")["feasible"].first())
    assert told == {"base": True} | {label: not is_broken for label, is_broken in broken.items()}
    page = Page(render(results))
    assert page.text.count(marked) == 2 * sum(broken.values())  # by means, and task by task
    _, *bests = page.charts["rank-forgetting-mean"]["data"]
    hovers = {x: text for trace in bests for x, text in zip(trace["x"], trace["text"], strict=True)}
    assert {rank: "breaks a constraint" in text for rank, text in hovers.items()} == {
        group.rank: broken[group.label] for group in results.lora_groups()
    }


def test_an_interval_over_seeds_has_no_values_that_an_accuracy_cannot_have(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=1).write(tmp_path))
    [chosen] = ledger.trials()
    for number, accuracy in ((100, 0.5), (101, 0.7)):
        metrics = {IN_DOMAIN_ACC: accuracy, KL_BASE_TO_TUNED: accuracy}
        ledger.write_trial(repeat_of(chosen, number, metrics))
    results = Results(open_sweeps([tmp_path]))
    for metric, highest in ((IN_DOMAIN_ACC, 1), (KL_BASE_TO_TUNED, 0.6 + 0.1 * 12.7062)):
        interval = results.over_seeds(chosen, metric)
        assert (interval.low, interval.high) == (0, pytest.approx(highest))
    cell = paper_table(results).rows[1].cells["in-domain"]
    assert cell_text(cell).endswith("(0.600, 0.000 to 1.000)")
    assert cell_text(Cell(0.5, seeds=Interval(0.6, 0.55, 0.65, 3))) == "0.500 (0.600 ± 0.050)"


def test_one_trial_that_was_stopped_is_told_of_as_one(tmp_path):
    ends = [dict.fromkeys(numbers, TrialStatus.STOPPED_EARLY) for numbers in ((1,), (1, 2))]
    one, two = (
        results_of(SyntheticSweep(trials=6, failures=ending), tmp_path / str(len(ending)))
        for ending in ends
    )
    assert one.more_stopped() == "; 1 more trial was stopped early by its scores"
    assert two.more_stopped() == "; 2 more trials were stopped early by their scores"


@pytest.mark.parametrize(("items", "is_certain"), [(40, False), (1000, True)])
def test_a_constraint_that_may_be_kept_by_luck_is_said_to_be(tmp_path, items, is_certain):
    bound = {"metric": FORGETTING_MEAN, "operator": "<=", "bound": 0.1}
    written = SyntheticSweep(trials=12, items=items, constraints=(bound,)).write(tmp_path)
    found = answer(Results(open_sweeps([written])))
    assert found.is_feasible
    unsure = "Its items do not decide whether it truly keeps forgetting/mean <= 0.1."
    assert (unsure in found.reason) is not is_certain
