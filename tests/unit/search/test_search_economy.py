"""The search benchmark: its table is whole, its replay counts what was found and spent."""

from __future__ import annotations

import math
from itertools import pairwise, product
from operator import le

import pytest
from benchmarks.grid import REPORT_EVERY, SEEDS, TABLE, Grid, Point, points, sweep
from benchmarks.replay import Table, run
from benchmarks.search_economy import SEARCHES, WholeGrid

from trainables.records.schema import TrialStatus


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid.read()


@pytest.fixture(scope="module")
def table(grid: Grid) -> Table:
    return Table(grid)


def test_the_table_holds_every_point_with_every_seed(grid: Grid) -> None:
    config = sweep()
    wanted = set(product(points(config), range(config.seed, config.seed + SEEDS)))
    assert len(wanted) >= 200 * 3
    assert len(grid.trainings) == len(wanted)
    assert {(training.point, training.seed) for training in grid.trainings} == wanted
    steps = [1, *range(REPORT_EVERY, 121, REPORT_EVERY)]
    for training in grid.trainings:
        assert training.status is TrialStatus.DIVERGED or list(training.curve) == steps
    assert TABLE.stat().st_size < 300_000


def test_hypervolume_found_equals_a_count_of_the_cells_that_are_dominated(table: Table) -> None:
    some = table.points[::20]
    losses = [table._losses[point] for point in some]
    axes = [sorted({*column}) for column in zip(*losses, table._reference, strict=True)]
    total = 0.0
    for cell in product(*(pairwise(axis) for axis in axes)):
        low, high = zip(*cell, strict=True)
        is_inside = all(h <= bound for h, bound in zip(high, table._reference, strict=True))
        if is_inside and any(all(map(le, loss, low)) for loss in losses):
            total += math.prod(end - start for start, end in cell)
    assert table.found(some) == pytest.approx(total)


def test_the_whole_grid_finds_all_there_is_and_no_more(table: Table) -> None:
    everything = run(table, WholeGrid, 0, 1.0)
    assert everything.started == len(table.points)
    assert everything.spent[-1] <= table.steps
    assert everything.shares[-1] == pytest.approx(1)


def test_a_suggestion_stands_for_the_nearest_rate_of_its_own_kind(table: Table) -> None:
    near = table.nearest(Point("lora", 8, 2.0, 9.9e-4))
    assert (near.method, near.rank, near.alpha_ratio) == ("lora", 8, 2.0)
    assert near.learning_rate == pytest.approx(0.000973, rel=1e-3)  # not 6.97e-4 or 1.36e-3


@pytest.mark.parametrize("name", ["Ray OptunaSearch, ASHA", "this project, early stopping"])
def test_a_search_with_a_seed_is_repeated_exactly_within_its_budget(
    table: Table, name: str
) -> None:
    one, again = (run(table, SEARCHES[name], 3, 1 / 16) for _ in range(2))
    assert one == again
    assert one.spent == sorted(one.spent)
    assert one.shares == sorted(one.shares)
    assert one.spent[-1] <= table.steps / 16
    assert 0 < one.shares[-1] <= 1
