"""The report on a sweep of several recipes: which forgets least, and that charts stay readable."""

from __future__ import annotations

import json

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.conclusions.comparisons import best_of_recipes
from analysis.matched_accuracy import matched_rows
from analysis.report.capacity_section import capacity_figure, rate_figure
from analysis.report.charts import recipe_keys
from analysis.report.curves import curves_figure
from analysis.report.formats import as_json, as_markdown
from analysis.report.page import render
from analysis.report.recipe_section import recipe_answer, recipe_table
from analysis.report.task_section import task_figure
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.methods import METHODS, Method
from trainables.methods.full import Full
from trainables.methods.lora import Lora
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC

FOUR: dict[str, tuple[Method, ...]] = {
    "lora": tuple(Lora(rank=rank, alpha=2 * rank) for rank in (8, 64)),
    "wide": (Lora(rank=256, alpha=512),),
    "oft": tuple(METHODS.find("oft")(block_size=size) for size in (4, 32)),
    "full": (Full(),),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    sweep = SyntheticSweep(trials=40, items=60, recipes=FOUR)
    return Results(open_sweeps([sweep.write(tmp_path_factory.mktemp("sweep"))]))


def test_a_recipe_is_judged_by_its_trial_that_forgets_least_at_the_level(results):
    rows = matched_rows(results)
    own = {name: results.recipe_trials(name, results.sweeps[0]) for name in FOUR}
    best = [max(trial.metric(IN_DOMAIN_ACC) for trial in trials) for trials in own.values()]
    base = results.base.metrics[IN_DOMAIN_ACC]
    level = min(one for one in best if one - base >= (max(best) - base) / 2)
    assert {row.level for row in rows} == {level}
    assert {row.trial.config.recipe for row in rows} == set(FOUR)
    for row in rows:
        reaching = [t for t in own[row.trial.config.recipe] if t.metric(IN_DOMAIN_ACC) >= level]
        assert row.reaches == bool(reaching)
        assert row.picked_from == 10
        if reaching:
            assert row.forgetting == min(trial.metric(FORGETTING_MEAN) for trial in reaching)
            assert row.interval.low <= row.forgetting <= row.interval.high
    reached = [row.forgetting for row in rows if row.reaches]
    assert reached == sorted(reached)
    assert [row.reaches for row in rows] == sorted((row.reaches for row in rows), reverse=True)


def test_the_answer_names_the_first_recipe_and_whom_items_do_not_tell_from_it(results):
    first, *others = matched_rows(results)
    text = recipe_answer(results)
    assert f"{first.label} forgets least" in text
    assert all(row.label in text for row in others)
    assert first.label == recipe_table(results).rows[0][0]
    for written in (as_markdown(results), render(results)):
        assert text in written
    document = json.loads(as_json(results))
    assert document["recipe_answer"] == text
    assert [row["trial"] for row in document["recipes"]] == [
        row.trial.config.trial_id for row in (first, *others)
    ]


def test_a_recipe_that_forgets_far_more_is_told_apart(tmp_path):
    scaled = {f"by {scale}": (Lora(rank=256, alpha=256 * scale),) for scale in (1, 64)}
    sweep = SyntheticSweep(trials=8, items=100, recipes=scaled)
    results = Results(open_sweeps([sweep.write(tmp_path)]))
    first, other = matched_rows(results)
    assert other.forgetting - first.forgetting > 0.1
    assert other.forgets_more
    assert not first.forgets_more
    assert f"On the same items {other.label} forgets more." in recipe_answer(results)


def test_one_recipe_is_compared_with_none(tmp_path):
    results = Results(open_sweeps([SyntheticSweep(4, full_every=0).write(tmp_path)]))
    assert recipe_answer(results) is None
    assert recipe_table(results) is None
    assert 'id="recipes"' not in render(results)


def test_many_recipes_are_compared_with_the_best_in_a_sentence_for_each_outcome(tmp_path):
    scales = (1, 1, 2, 2, 64, 64, 64)
    recipes = {f"r{n}": (Lora(rank=64, alpha=64 * by),) for n, by in enumerate(scales)}
    sweep = SyntheticSweep(trials=21, items=100, recipes=recipes)
    results = Results(open_sweeps([sweep.write(tmp_path)]))
    forgetting = [
        c.statement
        for c in best_of_recipes(results, results.sweeps[0])
        if "on the retention tasks" in c.statement.lower()
    ]
    assert 0 < len(forgetting) <= 3
    named = " ".join(forgetting)
    assert all(f"{name} (" in named or f"best {name} (" in named for name in recipes)


def test_charts_of_twenty_recipes_show_less_of_each(tmp_path):
    methods = {f"r{n}": tuple(Lora(rank=r, alpha=r) for r in (2, 8)) for n in range(20)}
    sweep = SyntheticSweep(trials=60, items=8, recipes=methods)
    results = Results(open_sweeps([sweep.write(tmp_path)]))
    keys = recipe_keys(results)
    assert len({(key.colour, key.shape) for key in keys}) == len(keys) == 20
    assert len(capacity_figure(results).charts) == len(curves_figure(results).charts) == 2
    for figure in (task_figure(results), rate_figure(results)):
        assert all(len(chart.data[0]["y"]) == 20 for chart in figure.charts)
