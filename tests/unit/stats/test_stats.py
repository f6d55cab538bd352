"""Statistics against closed forms, brute force and reference libraries."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from builders import with_metrics
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from synthetic_sweep import SyntheticSweep

from analysis.results.sample_size import items_needed
from analysis.stats.hypervolume import hypervolume
from analysis.stats.importance import FEWEST_TRIALS, importances
from analysis.stats.intervals import (
    bootstrap_mean,
    difference_over_seeds,
    over_items,
    over_seeds,
    upper_bound,
)
from analysis.stats.significance import sign_flips
from analysis.stats.trends import spearman
from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.records.ledger import Ledger


def answers(forgotten: int, gained: int, items: int) -> list[int]:
    """Differences of items that are right or wrong."""
    return [-1] * forgotten + [1] * gained + [0] * (items - forgotten - gained)


def test_the_bootstrap_is_what_drawing_items_one_by_one_gives():
    level = 0.99
    generator = np.random.default_rng(1)
    tasks = [generator.choice([-1, 0, 1], 60, p=[0.1, 0.6, 0.3]), generator.exponential(1, 25)]
    found = bootstrap_mean(tasks, resamples=40_000, level=level)
    means = [
        generator.choice(values, (40_000, len(values)), replace=True).mean(axis=1)
        for values in tasks
    ]
    low, high = np.quantile(np.mean(means, axis=0), [(1 - level) / 2, (1 + level) / 2])
    assert found.estimate == pytest.approx(np.mean([values.mean() for values in tasks]))
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    assert found.n == 85


@pytest.mark.parametrize("rose", [0, 1, 5])
def test_where_items_only_rose_the_upper_bound_is_hardly_above_clopper_and_pearsons(rose):
    level = 0.9875
    exact = scipy.stats.binomtest(rose, 400, alternative="less").proportion_ci(level, "exact").high
    values = np.repeat([1, 0], [rose, 400 - rose])
    assert exact <= upper_bound([values], level=level) <= 1.16 * exact
    assert upper_bound([values[::2], values[1::2]], level=level) >= exact


def test_as_many_items_as_are_needed_for_a_bound_reach_it_where_none_differs():
    weights = [0.5, 0.5]
    needed = items_needed([20, 60], weights, level=0.99)
    small, large = needed // 4, needed - needed // 4
    bounds = [
        upper_bound([[0] * n, [0] * large], weights, level=0.99) for n in (small + 1, small - 1)
    ]
    assert bounds[0] <= 0.02 < bounds[1]


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [((20, 1000), (0.5, 0.5)), ((5, 7, 300), (0.2, 0.3, 0.5))],
)
def test_what_a_small_task_may_hide_is_bounded_by_all_shares_that_are_likely_enough(sizes, weights):
    """Against a search over shares p for which seeing none has probability 5 % or more."""
    exact = scipy.optimize.minimize(
        lambda p: -np.dot(weights, p),
        x0=np.full(len(sizes), 1e-3),
        bounds=[(0, 1 - 1e-9)] * len(sizes),
        constraints={
            "type": "ineq",
            "fun": lambda p: np.dot(sizes, np.log1p(-p)) - np.log(0.05),
        },
        method="SLSQP",
    )
    assert exact.success
    found = bootstrap_mean([[0] * n for n in sizes], weights, bounds=(0, 1), level=0.9)
    assert found.high == pytest.approx(-exact.fun, rel=1e-3)
    alone = bootstrap_mean([[0] * sizes[0]], bounds=(0, 1), level=0.9).high
    assert found.high > weights[0] * alone - 1e-9


@pytest.mark.parametrize(("right", "n"), [(0, 40), (1, 40), (97, 100), (300, 300)])
def test_accuracies_have_the_interval_of_clopper_and_pearson_over_tasks_of_like_items_too(right, n):
    exact = scipy.stats.binomtest(right, n).proportion_ci(0.99, "exact")
    values = [1] * right + [0] * (n - right)
    thirds = [values[::3], values[1::3] + values[2::3]]
    for tasks in ([values], [values[::2], values[1::2]], thirds):
        weights = [len(task) / n for task in tasks]
        found = over_items(tasks, weights, bounds=(0, 1), level=0.99)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
        assert (found.estimate, found.n) == (pytest.approx(right / n), n)


def test_a_difference_has_the_interval_that_its_shares_limits_make():
    gained, lost = (scipy.stats.binomtest(k, 200).proportion_ci(0.95, "exact") for k in (30, 50))
    correlation = -np.sqrt(0.15 * 0.25 / (0.85 * 0.75))
    low, high = (
        -0.1 + sign * np.sqrt(one**2 + other**2 - 2 * correlation * one * other)
        for sign, one, other in (
            (-1, 0.15 - gained.low, lost.high - 0.25),
            (1, gained.high - 0.15, 0.25 - lost.low),
        )
    )
    found = over_items([answers(50, 30, 200)], bounds=(-1, 1))
    assert (found.low, found.high) == pytest.approx((low, high))
    alone = over_items([answers(50, 30, 200), answers(0, 0, 50)], [0.5, 0.5], bounds=(-1, 1))
    unseen = scipy.stats.binomtest(0, 50).proportion_ci(0.95, "exact").high
    assert alone.estimate - alone.low == pytest.approx(np.hypot(-0.1 - low, unseen) / 2)
    assert alone.high - alone.estimate == pytest.approx(np.hypot(high + 0.1, unseen) / 2)


@pytest.mark.parametrize("picked_from", [1, 40])
@pytest.mark.parametrize(("gained", "lost"), [(0, 0.02), (0.005, 0.01), (0.005, 0.03), (0.3, 0.3)])
def test_intervals_of_differences_miss_as_rarely_as_they_say(gained, lost, picked_from):
    """Summed over all outcomes of 100 items."""
    likely = scipy.stats.multinomial(100, [gained, lost, 1 - gained - lost])
    level, missed = 1 - 0.05 / picked_from, 0.0
    for up, down in itertools.product(range(101), repeat=2):
        chance = likely.pmf([up, down, 100 - up - down]) if up + down <= 100 else 0.0
        if chance > 1e-6:
            found = over_items([answers(down, up, 100)], bounds=(-1, 1), level=level)
            missed += chance * (not found.low <= gained - lost <= found.high)
    assert missed <= 0.05 / picked_from


def test_a_difference_over_seeds_is_no_narrower_than_welchs_and_needs_two_of_each():
    one, other = [0.5, 0.6, 0.55, 0.52], [0.4, 0.45, 0.43]
    welch = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    found = difference_over_seeds(one, other)
    assert found.low == pytest.approx(welch.low, abs=0.03)
    assert found.low <= welch.low
    assert found.high >= welch.high
    assert found.n == 7
    assert difference_over_seeds([0.5], [0.4]) is None


@pytest.mark.parametrize("several", [[0.5, 0.51], [0.5, 0.6, 0.55, 0.52]])
def test_one_run_beside_several_is_a_new_case_beside_a_sample(several):
    """At an end of the interval the test of two samples with one variance has p = 0.05."""
    found = difference_over_seeds([0.7], several)
    n = len(several)
    half = scipy.stats.t.ppf(0.975, n - 1) * np.std(several, ddof=1) * (1 + 1 / n) ** 0.5
    assert (found.high - found.estimate, found.n) == (pytest.approx(half), n + 1)
    for end in (found.low, found.high):
        assert scipy.stats.ttest_ind([0.7 - end], several).pvalue == pytest.approx(0.05)


def test_seeds_have_the_interval_of_student():
    values = [0.5, 0.6, 0.55, 0.52]
    found = over_seeds(values)
    reference = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.estimate == pytest.approx(np.mean(values))
    assert over_seeds([0.5]) is None


@given(st.integers(0, 60), st.integers(0, 60))
def test_of_right_and_wrong_items_the_signs_are_mcnemars_exact_test(forgotten, gained):
    table = [[5, forgotten], [gained, 7]]
    expected = mcnemar(table, exact=True).pvalue if forgotten + gained else 1.0
    assert sign_flips([answers(forgotten, gained, 130)], [1]) == pytest.approx(expected)


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_hypervolume_is_what_counting_cells_gives(objectives):
    draw = random.Random(objectives)
    reference = [4, 3, 5, 2][:objectives]
    for _ in range(30):
        points = [[draw.randrange(5) for _ in range(objectives)] for _ in range(draw.randrange(9))]
        cells = itertools.product(*map(range, reference))
        dominated = sum(
            any(all(a <= c for a, c in zip(point, cell, strict=True)) for point in points)
            for cell in cells
        )
        assert hypervolume(points, reference) == dominated


@pytest.mark.parametrize("levels", [2, 5])
def test_spearman_given_a_third_is_the_partial_correlation_of_ranks(levels):
    """Given ranks and their squares, of two levels the ranks alone: by the inverse correlations."""
    generator = np.random.default_rng(2)
    third = generator.integers(0, levels, 40)
    first, second = (third + generator.normal(0, 2, 40) for _ in range(2))
    ranks = [scipy.stats.rankdata(values) for values in (first, second, third)]
    precision = np.linalg.inv(np.corrcoef([*ranks, ranks[2] ** 2][: 3 + (levels > 2)]))
    rho = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    found = spearman(first.tolist(), second.tolist(), third.tolist())
    assert found.rho == pytest.approx(rho)
    left = 37 - (levels > 2)
    exact = 2 * scipy.stats.t.sf(abs(rho) * np.sqrt(left / (1 - rho**2)), left)
    assert found.p_value == pytest.approx(exact, abs=0.02)
    undefined = spearman([1 / (1 + rank) for rank in third], second.tolist(), third.tolist())
    assert np.isnan(undefined.rho)
    assert undefined.p_value == 1.0


def test_importance_finds_what_matters_and_says_nothing_of_few_trials_or_no_difference(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=60, items=10, full_every=0).write(tmp_path))
    trials = ledger.trials()
    rates = {record.number: record.params["lora/learning_rate"] for record in trials}
    invented = [with_metrics(r, {IN_DOMAIN_ACC: np.log(rates[r.number])}) for r in trials]
    found = importances(invented, IN_DOMAIN_ACC)
    assert max(found, key=found.get) == "lora/learning_rate"
    assert found["lora/learning_rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importances(invented[: FEWEST_TRIALS - 1], IN_DOMAIN_ACC) == {}
    assert importances(invented[:FEWEST_TRIALS], IN_DOMAIN_ACC)
    alike = [with_metrics(record, {IN_DOMAIN_ACC: 0.5}) for record in trials]
    assert importances(alike, IN_DOMAIN_ACC) == {}


def test_a_difference_over_tasks_is_tested_as_it_is_stated() -> None:
    """The small task gains, the large one loses more items: the mean over tasks gains."""
    small, large = answers(0, 10, 100), answers(300, 200, 10_000)
    of_small, of_large = 2 * np.arange(11) - 10, 2 * np.arange(501) - 500
    sums = np.add.outer(of_small / 100, of_large / 10_000)
    chances = np.multiply.outer(
        scipy.stats.binom.pmf(np.arange(11), 10, 0.5),
        scipy.stats.binom.pmf(np.arange(501), 500, 0.5),
    )
    exact = chances[np.abs(sums) >= 0.09 - 1e-9].sum()
    assert 0.001 < exact < 0.01
    assert sign_flips([small, large], [1, 1]) == pytest.approx(exact, rel=1e-9)


_GRADES = st.one_of(st.integers(-5, 5).map(lambda grade: grade / 5), st.floats(-1, 1))


@given(st.lists(st.lists(_GRADES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_signs_by_every_pattern_of_them(grades: list[list[float]]) -> None:
    """Scores in fifths, of which many sums agree, and any others."""
    weights = [0.5, 0.3, 0.2][: len(grades)]
    scaled = [w * np.array(task) / len(task) for w, task in zip(weights, grades, strict=True)]
    differences = np.concatenate(scaled)
    patterns = np.array(list(itertools.product((-1, 1), repeat=differences.size)))
    reached = np.abs(patterns @ differences) >= abs(differences.sum()) - 1e-9
    assert sign_flips(grades, weights) == pytest.approx(reached.mean(), rel=1e-9)


def test_continuous_grades_are_tested_by_draws_or_hoeffdings_bound() -> None:
    """Otherwise no difference, however large, would outlive a correction for many comparisons."""
    draw = np.random.default_rng(0)
    scores = draw.normal(0.02, 1, (5, 400))
    reference = scipy.stats.ttest_1samp(scores.ravel(), 0).pvalue
    assert sign_flips(list(scores), [1] * 5) == pytest.approx(reference, abs=0.02)
    large = draw.normal(0.6, 1, 1000)
    bound = 2 * np.exp(-(large.sum() ** 2) / (2 * np.square(large).sum()))
    assert sign_flips([large], [1]) == pytest.approx(bound, rel=1e-6)
    assert bound < 1e-9
