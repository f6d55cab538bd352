"""Repeats with other seeds: which are run, their means and intervals, and what they decide."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from builders import GAIN, LOSS, measurement, sweep_config, trial, trial_config
from scipy import stats
from simulated_search import completing, run, searcher_of, sweep

from analysis.results.confirmation import (
    missing_repeats,
    repeats_to_begin,
    unconfirmed,
    winners,
)
from analysis.results.pareto import pareto_front
from analysis.results.recommendation import Recommendation, recommend
from analysis.results.repeats import half_width, judged_by_repeats, point_of, repeats_of
from trainables.config import TrialConfig
from trainables.records.schema import TrialRecord, TrialStatus
from tune.folder.tables import write_confirmed_csv
from tune.search.earlier_trials import own_trials


def test_an_interval_is_that_of_students_t() -> None:
    values = [0.61, 0.55, 0.7, 0.66, 0.58]
    half = half_width(values)
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert half is not None
    assert (0.62 - half, 0.62 + half) == pytest.approx((low, high))


def test_one_run_has_no_interval() -> None:
    assert half_width([0.5]) is None


# Of eight trials two mark the ends of the front, and all others but 2 and 5 are far from it.
BY_NUMBER = {0: (1.0, 1.0), 1: (0.01, 0.01), 2: (0.9, 0.1), 5: (0.8, 0.2)}
WINNERS = [2, 5]


def two_stand_out(trial: TrialConfig) -> tuple[TrialStatus, dict[str, float]]:
    gain, loss = BY_NUMBER.get(trial.number, (0.1, 0.9))
    status = TrialStatus.DIVERGED if trial.number == 9 else TrialStatus.COMPLETE
    return status, {GAIN: gain, LOSS: loss}


def test_runs_that_confirm_are_no_trials_of_the_search(tmp_path: Path) -> None:
    config = sweep(trials=8, confirm={"top_k": 2, "seeds": 3})
    records = run(searcher_of(config), two_stand_out)
    search = [record for record in records if record.confirms is None]
    assert pareto_front(config, records) == pareto_front(config, search)
    best = recommend(config, records, judged=())
    assert best is not None
    assert best.trial.number == WINNERS[0]
    assert [record.confirms for record in records[8:]] == [n for n in WINNERS for _ in range(3)]

    write_confirmed_csv(tmp_path / "confirmed.csv", records, {})
    with (tmp_path / "confirmed.csv").open(newline="") as stream:
        rows = {(int(row["number"]), row["metric"]): row for row in csv.DictReader(stream)}
    assert {number for number, _ in rows} == set(WINNERS)
    for (number, metric), row in rows.items():
        repeats = [record for record in records if record.confirms == number]
        complete = [r.metric(metric) for r in repeats if r.status is TrialStatus.COMPLETE]
        assert int(row["runs"]) == len(complete)
        assert float(row["mean"]) == pytest.approx(math.fsum(complete) / len(complete))
        assert int(row["diverged"]) == sum(r.status is TrialStatus.DIVERGED for r in repeats)
    assert [path.name for path in tmp_path.iterdir()] == ["confirmed.csv"]


def searched(number: int, metrics: dict[str, float], point: int | None = None) -> TrialRecord:
    """A trial of the search; of a point of its own unless one is given."""
    return trial(
        number, metrics, learning_rate=rate(number if point is None else point), seed=number
    )


def repeat(number: int, winner: int, status: TrialStatus, metrics: dict[str, float]) -> TrialRecord:
    """A repeat run of a winner, which is the first trial of its point."""
    return trial(number, metrics, status, confirms=winner, learning_rate=rate(winner), seed=number)


def rate(point: int) -> float:
    return 1e-5 * (1 + point)


RATES = {"low": 1e-5, "high": 1e-3}
COMPLETE, DIVERGED = TrialStatus.COMPLETE, TrialStatus.DIVERGED
LOST = [TrialStatus.FAILED, TrialStatus.OUT_OF_MEMORY, TrialStatus.CANCELLED, TrialStatus.RUNNING]
SEARCHED = [searched(0, {GAIN: 0.9, LOSS: 0.049}), searched(1, {GAIN: 0.8, LOSS: 0.03})]
GOALS = sweep_config(objectives=[{"metric": GAIN, "mode": "max"}], constraints=[f"{LOSS} <= 0.05"])


def recommended(*repeats: TrialRecord) -> Recommendation:
    records = [*SEARCHED, *repeats]
    found = recommend(GOALS, records)
    assert found is not None
    return found


def test_a_winner_that_was_lucky_once_is_not_taken() -> None:
    found = recommended(
        repeat(2, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.07}),
        repeat(3, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.09}),
        repeat(4, 1, COMPLETE, {GAIN: 0.7, LOSS: 0.02}),
        repeat(5, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.04}),
    )
    assert recommended().trial.number == 0
    assert (found.trial, found.feasible) == (SEARCHED[1], True)  # with its own measurements
    assert found.reason == (
        "by the means over repeats with other seeds, the only repeated trial that keeps every "
        f"constraint: {GAIN} 0.750. Its run in the search has {GAIN} 0.800. In the mean over other "
        "seeds trial 0 broke a constraint. One run of each would have chosen trial 0."
    )


def test_a_winner_whose_run_and_repeats_are_alike_as_printed_is_told_by_one_of_them() -> None:
    lone = recommended(repeat(2, 0, COMPLETE, {GAIN: 0.9004, LOSS: 0.04}))
    assert lone.reason.endswith(f": {GAIN} 0.900.")
    kept = SEARCHED[0].model_copy(update={"weights_dir": "/weights"})
    found = recommend(GOALS, [kept, repeat(2, 0, COMPLETE, {GAIN: 0.901, LOSS: 0.04})])
    assert found is not None
    assert found.reason.endswith(
        f": {GAIN} 0.901. Its run in the search, whose weights are kept, has {GAIN} 0.900."
    )


def test_a_repeat_of_another_does_not_overturn_the_choice_before_its_own_have_run() -> None:
    early = repeat(2, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.03})
    assert recommended(early).reason == recommended().reason
    own = [repeat(n, 0, COMPLETE, {GAIN: 0.7, LOSS: 0.03}) for n in (3, 4)]
    assert recommended(early, *own).trial.number == 0  # one repeat is less certain than two
    assert recommended(early, *own, repeat(5, 1, TrialStatus.FAILED, {})).trial.number == 1


def test_where_no_winner_keeps_the_constraints_over_its_repeats_another_trial_is_taken() -> None:
    found = recommended(repeat(2, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.08}))
    assert (found.trial, found.feasible) == (SEARCHED[1], True)
    assert found.reason == (
        "in the mean over other seeds trial 0 broke a constraint; of the others, "
        f"the only complete trial that keeps every constraint: {GAIN} 0.800."
    )


def test_where_no_trial_keeps_the_constraints_over_its_repeats_that_is_said() -> None:
    found = recommended(
        repeat(2, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.08}),
        repeat(3, 1, COMPLETE, {GAIN: 0.9, LOSS: 0.07}),
    )
    assert (found.trial.number, found.feasible) == (1, False)
    assert f"{LOSS} is 0.07, not <= 0.05. Its run in the search has {LOSS} +0.030." in found.reason
    far, lost = searched(1, {GAIN: 0.8, LOSS: 0.3}), repeat(2, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.08})
    alone = recommend(GOALS, [SEARCHED[0], far, lost])
    assert alone is not None
    assert (alone.trial.number, alone.feasible) == (0, False)


def test_where_no_run_of_the_search_keeps_the_constraints_one_whose_repeats_do_is_taken() -> None:
    records = [searched(0, {GAIN: 0.9, LOSS: 0.06}), searched(1, {GAIN: 0.8, LOSS: 0.09})]
    by_search = recommend(GOALS, records)
    assert by_search is not None
    assert (by_search.trial, by_search.feasible) == (records[0], False)
    kept = repeat(2, 1, COMPLETE, {GAIN: 0.7, LOSS: 0.04})
    found = recommend(GOALS, [*records, kept])
    assert found is not None
    assert (found.trial, found.feasible) == (records[1], True)
    assert found.reason == (
        "by the means over repeats with other seeds, the only repeated trial that keeps every "
        f"constraint: {GAIN} 0.700. Its run in the search has {GAIN} 0.800. No run of the search "
        "keeps every constraint; that of trial 0 came nearest."
    )
    for refuting in (
        repeat(2, 1, COMPLETE, {GAIN: 0.7, LOSS: 0.051}),
        repeat(2, 1, DIVERGED, {GAIN: 0.7, LOSS: 0.04}),
    ):
        assert recommend(GOALS, [*records, refuting]) == by_search


def test_a_winner_of_which_a_repeat_diverged_is_not_taken() -> None:
    found = recommended(
        repeat(2, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.01}),
        repeat(3, 0, DIVERGED, {GAIN: 0.1, LOSS: 0.6}),
        repeat(4, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.01}),
    )
    assert found.trial.number == 1
    assert found.reason.startswith("with another seed trial 0 diverged; of the others, the only")


def test_a_winner_of_which_a_repeat_lacks_an_objective_is_not_taken() -> None:
    repeats = [repeat(2, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.1}), repeat(3, 0, COMPLETE, {GAIN: 0.9})]
    found = recommend(sweep_config(), [*SEARCHED, *repeats])
    assert found is not None
    assert found.trial.number == 1
    fault = "with another seed trial 0 had no finite value of an objective"
    assert found.reason.startswith(f"{fault}; of the others, the only complete trial to ")


def test_a_trial_that_lacks_an_objective_is_not_taken_for_what_its_repeats_have() -> None:
    records = [
        searched(0, {GAIN: 0.9}),
        SEARCHED[1],
        repeat(2, 0, COMPLETE, {GAIN: 0.95, LOSS: 0.01}),
        repeat(3, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.03}),
    ]
    found = recommend(sweep_config(), records)
    assert found is not None
    assert found.trial is SEARCHED[1]


def test_where_the_knee_diverged_with_another_seed_that_of_the_others_is_taken() -> None:
    """Of these trial 4 is hypot(0.3, 0.4) = 0.5 from the ideal, and trial 3 hypot(0.5, 0.05)."""
    values = [(0.9, 0.1), (0.0, 0.0), (1.0, 1.0), (0.5, 0.05), (0.7, 0.4)]
    records = [searched(n, {GAIN: gain, LOSS: loss}) for n, (gain, loss) in enumerate(values)]
    for repeats, taken in (([], 0), ([repeat(5, 0, DIVERGED, {})], 4)):
        found = recommend(sweep_config(), [*records, *repeats])
        assert found is not None
        assert found.trial.number == taken


def test_the_reason_counts_no_repeated_trial_that_diverged_and_says_so() -> None:
    records = [
        searched(0, {GAIN: 0.9, LOSS: 0.04}),
        searched(1, {GAIN: 0.8, LOSS: 0.03}),
        repeat(2, 0, DIVERGED, {GAIN: 0.1, LOSS: 0.6}),
        repeat(3, 1, COMPLETE, {GAIN: 0.7, LOSS: 0.02}),
    ]
    found = recommend(sweep_config(), records, judged_by_repeats(records, None))
    assert found is not None
    assert found.reason == (
        "by the means over repeats with other seeds, the only repeated trial to choose from: "
        f"{GAIN} 0.700, {LOSS} +0.020. Its run in the search has {GAIN} 0.800, {LOSS} +0.030. With "
        "another seed trial 0 diverged. One run of each would have chosen trial 0."
    )


def test_of_winners_that_cannot_be_taken_the_reason_says_which_for_what() -> None:
    found = recommended(
        repeat(2, 0, DIVERGED, {GAIN: 0.1, LOSS: 0.6}),
        repeat(3, 1, COMPLETE, {GAIN: 0.9, LOSS: 0.07}),
    )
    assert not found.feasible
    assert f"no trial keeps every constraint: of the only repeated one {LOSS} is" in found.reason
    assert "With another seed trial 0 diverged. One" in found.reason
    other = searched(4, {GAIN: 0.7, LOSS: 0.02})
    records = [
        *SEARCHED,
        repeat(2, 0, DIVERGED, {GAIN: 0.1, LOSS: 0.6}),
        repeat(3, 1, COMPLETE, {GAIN: 0.9, LOSS: 0.07}),
        other,
    ]
    taken = recommend(GOALS, records, judged_by_repeats(records, None))
    assert taken is not None
    assert taken.trial is other
    assert taken.reason.startswith(
        "with another seed trial 0 diverged, and in the mean over other seeds trial 1 broke a "
        "constraint; of the others, the only complete trial that keeps"
    )


def test_a_trial_that_diverged_with_other_seeds_is_not_taken_where_nothing_else_was_repeated():
    lost = repeat(2, 0, DIVERGED, {GAIN: 0.1, LOSS: 0.6})
    assert recommended(lost).trial.number == 1
    alone = [SEARCHED[0], lost]
    found = recommend(GOALS, alone)
    assert found is not None
    assert found.trial.number == 0
    assert found.reason.endswith(f"constraint: {GAIN} 0.900. With another seed trial 0 diverged.")
    beyond = searched(1, {GAIN: 0.8, LOSS: 0.3})
    found = recommend(GOALS, [*alone, beyond])
    assert found is not None
    assert (found.trial, found.feasible) == (beyond, False)
    assert found.reason.startswith("with another seed trial 0 diverged; of the others, no trial")


def test_a_point_that_was_refuted_is_not_taken_for_another_run_of_it_that_was_lucky() -> None:
    records = [
        searched(0, {GAIN: 0.9, LOSS: 0.04}),
        repeat(1, 0, DIVERGED, {GAIN: 0.1, LOSS: 0.6}),
        searched(2, {GAIN: 0.95, LOSS: 0.04}, point=0),
        searched(3, {GAIN: 0.8, LOSS: 0.03}),
    ]
    found = recommend(GOALS, records)
    assert found is not None
    assert found.trial.number == 3


def test_every_run_of_a_point_is_judged_by_the_repeats_of_it() -> None:
    records = [
        *SEARCHED,
        repeat(2, 0, COMPLETE, {GAIN: 0.6, LOSS: 0.02}),
        searched(3, {GAIN: 0.99, LOSS: 0.04}, point=0),
        repeat(4, 0, COMPLETE, {GAIN: 0.8, LOSS: 0.04}),
    ]
    judged = judged_by_repeats(records, None)
    assert [(record.number, record.metric(GAIN)) for record in judged] == [
        (0, pytest.approx(0.7)),
        (3, pytest.approx(0.7)),
    ]
    assert [repeats_of(record, records) for record in records] == [
        [records[2], records[4]], [], [], [records[2], records[4]], [],
    ]  # fmt: skip
    broken = records[3].model_copy(update={"status": DIVERGED})
    assert repeats_of(broken, records) == []


def test_of_the_runs_of_a_point_that_is_confirmed_the_best_is_taken() -> None:
    """They are judged alike, but each has its own weights."""
    broken = {GAIN: 0.7, LOSS: 0.9}
    records = [
        searched(0, broken),
        searched(1, {GAIN: 0.8, LOSS: 0.04}),
        searched(3, {GAIN: 0.9, LOSS: 0.03}, point=0),
        repeat(4, 0, COMPLETE, {GAIN: 0.85, LOSS: 0.03}),
    ]
    found = recommend(GOALS, records)
    assert found is not None
    assert found.trial is records[2]
    assert "as good" not in found.reason
    assert "would have chosen" not in found.reason
    without = records[0].model_copy(update={"last": measurement(9, {GAIN: 0.7})})
    found = recommend(GOALS, records[1:], judged_by_repeats([without, *records[1:]], None))
    assert found is not None
    assert found.trial is records[2]


def test_of_the_runs_of_a_point_the_best_is_taken_where_the_search_would_take_another() -> None:
    records = [
        searched(0, {GAIN: 0.95, LOSS: 0.04}),
        searched(1, {GAIN: 0.7, LOSS: 0.04}),
        searched(2, {GAIN: 0.8, LOSS: 0.03}, point=1),
        repeat(3, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.09}),
        repeat(4, 1, COMPLETE, {GAIN: 0.75, LOSS: 0.03}),
    ]
    found = recommend(GOALS, records)
    assert found is not None
    assert found.trial is records[2]


def test_of_runs_of_a_point_that_is_confirmed_the_one_that_the_search_would_take_is_taken() -> None:
    """By themselves each of the two would be best in one objective and worst in the other."""
    records = [
        searched(0, {GAIN: 0.6, LOSS: 0.1}),
        searched(1, {GAIN: 0.9, LOSS: 0.2}, point=0),
        searched(2, {GAIN: 1.0, LOSS: 0.9}),
        searched(3, {GAIN: 0.2, LOSS: 0.0}),
        repeat(4, 0, COMPLETE, {GAIN: 0.8, LOSS: 0.15}),
    ]
    found = recommend(sweep_config(), records)
    assert found is not None
    assert found.trial.number == 1
    assert "would have chosen" not in found.reason


def test_runs_of_a_point_in_several_sweeps_are_judged_each_by_its_own_repeats() -> None:
    """Their data may be others."""
    records = [searched(0, {GAIN: 0.9, LOSS: 0.04}), searched(1, {GAIN: 0.95, LOSS: 0.04}, point=0)]
    means = ({GAIN: 0.85, LOSS: 0.04}, {GAIN: 0.85, LOSS: 0.09})
    judged = [
        record.model_copy(update={"last": measurement(9, mean)})
        for record, mean in zip(records, means, strict=True)
    ]
    found = recommend(GOALS, records, judged)
    assert found is not None
    assert (found.trial, found.feasible) == (records[0], True)


def test_winners_are_judged_once_they_have_the_repeats_that_are_asked_for_now() -> None:
    of_before = [repeat(n, 0, COMPLETE, {GAIN: 0.7, LOSS: 0.03}) for n in range(2, 7)]
    records = [*SEARCHED, *of_before]
    confirm = sweep_config(confirm={"top_k": 2, "seeds": 3}).confirm
    assert [r.number for r in judged_by_repeats(records[:4], confirm)] == [0]
    for number in (7, 8):
        records.append(repeat(number, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.03}))
        third = repeat(9, 1, TrialStatus.RUNNING, {})
        assert [r.number for r in judged_by_repeats([*records, third], confirm)] == [0]
    records.append(repeat(9, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.03}))
    assert [r.number for r in judged_by_repeats(records, confirm)] == [0, 1]
    assert [r.number for r in judged_by_repeats(records, None)] == [0]


@pytest.mark.parametrize("best", [3, 7])
def test_repeats_that_come_to_the_same_leave_the_choice_as_it_was(best: int) -> None:
    """Over the front of the repeated two alone, both would be as far from the ideal."""
    goals = sweep_config()
    other = 10 - best
    values = {
        0: (0.55, 0.0),
        1: (0.93, 0.4),
        other: (0.91, 0.1),
        best: (0.9, 0.02),
        8: (0.89, 0.03),
    }
    records = [searched(n, {GAIN: gain, LOSS: loss}) for n, (gain, loss) in sorted(values.items())]
    number = 9
    for winner in (best, 8, other):
        gain, loss = values[winner]
        for by in (-0.002, 0.002):
            records.append(repeat(number, winner, COMPLETE, {GAIN: gain + by, LOSS: loss}))
            number += 1
    found = recommend(goals, records)
    assert found is not None
    assert found.trial.number == best
    assert "would have chosen" not in found.reason


def test_a_mean_beyond_the_best_run_of_the_search_counts_for_its_trial() -> None:
    values = [(0.5, 0.1), (0.8, 0.2), (1.0, 0.5)]
    records = [searched(n, {GAIN: gain, LOSS: loss}) for n, (gain, loss) in enumerate(values)]
    records.append(repeat(3, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.2}))
    records.append(repeat(4, 2, COMPLETE, {GAIN: 0.75, LOSS: -0.7}))
    found = recommend(sweep_config(), records)
    assert found is not None
    assert found.trial.number == 2


def test_what_is_confirmed_are_points_and_each_with_every_seed_once() -> None:
    # Of four points twelve trials run each several times.
    rates = {"rank": [4, 8], "alpha_ratio": 2, "learning_rate": [1e-4, 1e-3]}
    confirm = {"top_k": 3, "seeds": 5}
    config = sweep(trials=12, search={"lora": rates}, confirm=confirm)
    records = run(searcher_of(config), completing)
    runs = [(frozenset(record.params.items()), record.config.seed) for record in records]
    assert len(set(runs)) == len(runs)
    repeats = [record for record in records if record.confirms is not None]
    assert len(repeats) == 15
    assert len({frozenset(record.params.items()) for record in repeats}) == 3
    assert searcher_of(config, records).is_done
    longer = sweep(trials=16, search={"lora": rates}, confirm=confirm)
    more = [*records, *run(searcher_of(longer, records), completing)]
    runs = [(frozenset(record.params.items()), record.config.seed) for record in more]
    assert len(runs) > len(records)
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize(
    ("ends", "missing"),
    [([], 15), ([COMPLETE] * 15, 0), ([DIVERGED] * 15, 0), ([COMPLETE] * 11 + LOST, 4), (LOST, 15)],
)
def test_repeats_that_failed_or_have_not_run_are_missing(
    ends: list[TrialStatus], missing: int
) -> None:
    """One that diverged is none of them: it tells that the setting does not train."""
    config = sweep(trials=12, confirm={"top_k": 3, "seeds": 5})
    found = run(searcher_of(config), completing)
    records = [record for record in found if record.confirms is None]
    repeats = [record for record in found if record.confirms is not None]
    records += [r.model_copy(update={"status": end}) for r, end in zip(repeats, ends, strict=False)]
    told = f" Missing: {missing} of 15 repeats with other seeds of first, not run to their end."
    to_begin = repeats_to_begin(config, records)
    assert missing_repeats(records, to_begin, " of first") == (told if missing else "")


@pytest.mark.parametrize(("most", "found"), [(0.5, {0, 1, 2}), (0.1, {0, 1})])
def test_there_are_no_more_winners_than_points_that_may_be_taken(
    most: float, found: set[int]
) -> None:
    records = [
        trial(n, {GAIN: 0.5 + loss, LOSS: loss}, learning_rate=loss)
        for n, loss in enumerate((0.05, 0.09, 0.4))
    ]
    config = sweep_config(constraints=[f"{LOSS} <= {most}"])
    assert {winner.number for winner in winners(config, records, 5)} == found


def test_repeats_after_the_search_was_widened_are_those_of_its_earlier_trials(
    tmp_path: Path,
) -> None:
    """Their records on disk keep the parameters of the search that they were drawn from."""
    narrow = sweep(trials=4, search={"lora": {"rank": 4, "alpha_ratio": 2, "learning_rate": RATES}})
    before = run(searcher_of(narrow), completing)
    wide = {"rank": [4, 8], "alpha_ratio": 2, "learning_rate": RATES}
    config = sweep(trials=4, search={"lora": wide}, confirm={"top_k": 2, "seeds": 3})
    known = own_trials(config, before)
    repeats = run(searcher_of(config, known), completing)
    assert len(repeats) == 6
    on_disk = [*before, *repeats]
    chosen = winners(config, on_disk, 2)
    assert [len(repeats_of(winner, on_disk)) for winner in chosen] == [3, 3]
    assert list(unconfirmed(3, chosen, on_disk)) == []
    assert len(judged_by_repeats(on_disk, config.confirm)) == 2
    write_confirmed_csv(tmp_path / "confirmed.csv", on_disk, {})
    assert (tmp_path / "confirmed.csv").exists()


def test_nothing_confirmed_leaves_no_table(tmp_path: Path) -> None:
    write_confirmed_csv(tmp_path / "confirmed.csv", run(searcher_of(sweep(trials=3))), {})
    assert list(tmp_path.iterdir()) == []


def test_a_trial_of_which_all_repeats_diverged_has_a_row_without_a_mean(tmp_path: Path) -> None:
    file = tmp_path / "confirmed.csv"
    lost = [repeat(n, 0, DIVERGED, {GAIN: 0.1, LOSS: 0.6}) for n in (2, 3)]
    write_confirmed_csv(file, [*SEARCHED, *lost], {})
    with file.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row == {
        "number": "0",
        "metric": "",
        "unit": "",
        "mean": "",
        "half_width_95": "",
        "runs": "0",
        "diverged": "2",
    }
    kept = repeat(4, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.03})
    write_confirmed_csv(file, [*SEARCHED, *lost, kept], {})
    with file.open(newline="") as stream:
        rows = [(row["number"], row["metric"], row["diverged"]) for row in csv.DictReader(stream)]
    assert rows == [("0", "", "2"), ("1", GAIN, "0"), ("1", LOSS, "0")]


def test_points_differ_in_all_that_is_searched_and_not_by_rounding() -> None:
    record = trial(0)
    lora = record.config.lora
    assert lora is not None

    def point(**changes: Any) -> Any:
        return point_of(record.model_copy(update={"config": trial_config(0, **changes)}))

    train = record.config.train.model_dump()
    assert point() == point_of(record)
    assert point(lora=lora.model_copy(update={"alpha": lora.alpha * (1 + 1e-15)})) == point()
    assert point(learning_rate=record.config.learning_rate * (1 + 1e-15)) == point()
    for change in (
        {"learning_rate": record.config.learning_rate * 1.01},
        {"lora": lora.model_copy(update={"alpha": lora.alpha * 1.01})},
        {"train": train | {"weight_decay": 0.1}},
        {"train": train | {"warmup": 0.2}},
        {"train": train | {"batch_size": 2 * train["batch_size"]}},
        {"train": train | {"steps": 7}},
    ):
        assert point(**change) != point()
