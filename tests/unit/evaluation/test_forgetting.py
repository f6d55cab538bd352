"""Forgetting in closed form: what base and tuned scores and items say about each other."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables import metric_keys as keys
from trainables.evaluation.forgetting import (
    chance_adjusted,
    count_flips,
    effective_choices,
    forgetting_metrics,
    retention_ratio,
)
from trainables.records.schema import ItemScore, TaskScore

Answers = list[tuple[bool, bool]]
answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50)


def items(task: str, scores: list[float], hashes: list[str] | None = None) -> list[ItemScore]:
    return [
        ItemScore(
            task=task,
            doc_hash=name,
            filter="none",
            score=score,
            prompt="",
            target="",
            answer="",
        )
        for name, score in zip(hashes or map(str, range(len(scores))), scores, strict=False)
    ]


def score(value: float, **fields: Any) -> TaskScore:
    given = {"role": "retention", "chance": 0.0, "choices": None} | fields
    return TaskScore(metric="acc", filter="none", value=value, items=1, **{"stderr": None} | given)


def metrics(tasks: dict[str, Answers], **fields: Any) -> dict[str, float]:
    """The metrics of tasks whose items were right before and after as given."""
    sides = []
    for side in (0, 1):
        scores = {
            task: score(sum(pair[side] for pair in pairs) / len(pairs), **fields)
            for task, pairs in tasks.items()
        }
        found = [
            item
            for task, pairs in tasks.items()
            for item in items(task, [float(pair[side]) for pair in pairs])
        ]
        sides.append((scores, found))
    (base, base_items), (tuned, tuned_items) = sides
    return forgetting_metrics(base, tuned, base_items, tuned_items)


@given(answers)
def test_the_difference_of_flips_is_the_forgetting(pairs: Answers) -> None:
    found = metrics({"t": pairs})
    assert found["flips/t/forgotten"] == pairs.count((True, False)) / len(pairs)
    assert found["flips/t/gained"] == pairs.count((False, True)) / len(pairs)
    difference = found[keys.task_flips("t", "forgotten")] - found[keys.task_flips("t", "gained")]
    assert difference == pytest.approx(found[keys.task_forgetting("t")], abs=1e-12)


@given(st.lists(st.booleans(), min_size=1), st.sampled_from([None, 2.0, 4.0]))
def test_the_base_compared_with_itself_forgets_nothing(
    right: list[bool], choices: float | None
) -> None:
    found = metrics({"t": [(each, each) for each in right]}, choices=choices)
    ratios = {key: value for key, value in found.items() if "ratio" in key}
    assert all(value == 0 for key, value in found.items() if key not in ratios)
    assert all(value == 1 for value in ratios.values())
    assert bool(ratios) == any(right)


def test_aggregates_over_tasks() -> None:
    found = metrics(
        {
            "lost": [(True, False), (True, True)],
            "kept": [(True, True), (False, False)],
            "gained": [(False, True), (False, True), (False, True), (True, True)],
        }
    )
    assert found[keys.task_forgetting("lost")] == 0.5
    assert found[keys.task_forgetting("kept")] == 0
    assert found[keys.task_forgetting("gained")] == -0.75
    assert found[keys.FORGETTING_MEAN] == pytest.approx(-0.25 / 3)
    assert found[keys.FORGETTING_MAX] == 0.5
    assert found[keys.FORGETTING_POSITIVE] == pytest.approx(0.5 / 3)
    assert found["retention/lost/ratio"] == 0.5
    assert found[keys.task_retention_ratio("gained")] == 4
    assert found[keys.RETENTION_RATIO] == pytest.approx((0.5 + 1 + 4) / 3)


def test_other_roles_and_their_items_do_not_count() -> None:
    base = {"t": score(1.0), "in": score(0.0, role="in_domain")}
    tuned = {"t": score(0.0), "in": score(1.0, role="in_domain")}
    before = items("t", [1.0]) + items("in", [0.0])
    after = items("t", [0.0]) + items("in", [1.0])
    found = forgetting_metrics(base, tuned, before, after)
    assert found[keys.FORGETTING_MEAN] == 1
    assert not any("in" in key.split("/") for key in found)


@pytest.mark.parametrize(
    ("base", "tuned", "chance", "ratio"),
    [
        (0.75, 0.5, 0.25, 0.5),
        (0.75, 0.1, 0.25, 0.0),
        (0.5, 1.0, 0.0, 2.0),
        (0.25, 0.5, 0.25, None),
        (0.5, 0.5, None, None),
    ],
)
def test_retention_ratio(
    base: float, tuned: float, chance: float | None, ratio: float | None
) -> None:
    assert retention_ratio(base, tuned, chance) == (None if ratio is None else pytest.approx(ratio))


def test_the_mean_of_ratios_leaves_out_tasks_within_two_standard_errors_of_chance() -> None:
    """A gain of 0.04 on such a task, five times what was there, would hide all forgetting."""
    base = {"known": score(0.8, chance=0.25, stderr=0.02), "noise": score(0.26, chance=0.25)}
    tuned = {"known": score(0.5, chance=0.25), "noise": score(0.3, chance=0.25)}
    both = items("known", [1.0]) + items("noise", [0.0])

    def found(stderr: float) -> dict[str, float]:
        noise = base["noise"].model_copy(update={"stderr": stderr})
        return forgetting_metrics(base | {"noise": noise}, tuned, both, both)

    assert found(0.005)[keys.RETENTION_RATIO] == pytest.approx(0.25 / 0.55)
    assert found(0.005)["retention/noise/ratio"] == pytest.approx(5)
    assert found(0.004)[keys.RETENTION_RATIO] == pytest.approx((0.25 / 0.55 + 5) / 2)
    alone = {"noise": score(0.26, chance=0.25, stderr=0.01)}
    of_noise = forgetting_metrics(
        alone, {"noise": tuned["noise"]}, items("noise", [0.0]), items("noise", [0.0])
    )
    assert of_noise[keys.RETENTION_RATIO] == pytest.approx(5)


@pytest.mark.parametrize(
    ("forgotten", "base", "tuned", "choices", "expected"),
    [
        (0.3, 1.0, 0.7, 4, 0.3),
        (0.25, 0.5, 0.5, 2, 0.0),
        (0.3, 0.7, 0.5, 4, 0.3 - 0.3 * 0.5 / 3),
        (0.0, 0.5, 0.6, 4, 0.0),
    ],
)
def test_forgetting_beyond_guessing(
    forgotten: float, base: float, tuned: float, choices: float, expected: float
) -> None:
    assert chance_adjusted(forgotten, base, tuned, choices) == pytest.approx(expected)


def test_what_guessing_explains_is_of_both_accuracies() -> None:
    pairs = [(True, False), (True, False), (True, True), (False, True)]
    found = metrics({"t": pairs}, choices=3.0)
    assert found[keys.task_forgetting_adjusted("t")] == 0.5 - 0.25 * 0.5 / 2


@given(st.lists(st.sampled_from([1.0, 2.0, 2.5, 4.0, 10.0]), min_size=1), st.floats(0, 1))
def test_guesses_among_other_numbers_of_choices_are_adjusted_to_nothing(
    counts: list[float], known: float
) -> None:
    """Also where both models know some answers, and guess at the others."""
    choices = effective_choices([(None, k) for k in counts])
    assert min(counts) <= choices <= max(counts)
    right = fmean(known + (1 - known) / k for k in counts)
    forgotten = (1 - known) ** 2 * fmean((1 - 1 / k) / k for k in counts)
    if choices > 1:
        assert chance_adjusted(forgotten, right, right, choices) == pytest.approx(0, abs=1e-8)
        more = chance_adjusted(forgotten + 0.01, right, right, choices)
        assert more == pytest.approx(0.01, abs=1e-8)


def test_members_of_a_group_weigh_the_same_in_its_number_of_choices() -> None:
    alone = effective_choices([("one", 2.0), ("other", 10.0)])
    assert effective_choices([("one", 2.0)] * 9 + [("other", 10.0)]) == alone == 3.882352941


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (items("t", [1], ["a"]), items("t", [1], ["b"]), "2 without a partner"),
        (items("t", [1, 1], ["a", "a"]), items("t", [1], ["a"]), "1 without a partner"),
    ],
)
def test_items_without_a_partner_are_refused(
    before: list[ItemScore], after: list[ItemScore], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        count_flips(before, after)


def test_members_of_a_group_weigh_the_same_in_its_flips() -> None:
    before, after = (
        [
            item.model_copy(update={"member": member})
            for item, member in zip(items("t", scores), ["one", *["other"] * 3], strict=True)
        ]
        for scores in ([1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0])
    )
    assert count_flips(before, after) == {"t": (1 / 2, pytest.approx(1 / 6))}


def test_items_pair_by_document_and_not_by_order() -> None:
    before = items("t", [1, 0, 1], ["a", "b", "c"])
    after = items("t", [0, 1, 0], ["b", "a", "c"])
    assert count_flips(before, after) == {"t": (pytest.approx(1 / 3), 0.0)}


def test_a_partial_score_counts_as_right_above_a_half() -> None:
    before = items("t", [0.6, 0.5, 1.0, 0.2])
    after = items("t", [0.5, 0.6, 0.51, 0.4])
    assert count_flips(before, after) == {"t": (0.25, 0.25)}


def test_scores_of_two_kinds_are_not_compared() -> None:
    before = {"t": score(1.0)}
    after = {"t": score(0.5).model_copy(update={"filter": "strict"})}
    found = items("t", [1.0])
    with pytest.raises(ValueError, match="the base was scored by acc"):
        forgetting_metrics(before, after, found, found)
