"""What the data say: sentences with their evidence, or with what is missing.

No sentence is written by hand for a sweep; each comes with the numbers that selected it.
p-values over trials are indicative: a sampler that learns from results does not draw at random.
"""

from __future__ import annotations

from dataclasses import replace

from analysis.conclusions.capacity_trends import forgetting_and_step_size, trend_over_capacities
from analysis.conclusions.comparisons import (
    best_of_recipes,
    best_of_sweeps,
    recommended_against_base,
)
from analysis.conclusions.conclusion import Conclusion
from analysis.conclusions.sufficient_capacity import capacity_that_suffices
from analysis.shown_sweeps import Results
from analysis.sweeps import Sweep

__all__ = ["Conclusion", "conclude"]


def conclude(results: Results) -> list[Conclusion]:
    """Every conclusion that the tasks and recipes allow, most relevant first.

    What compares trials by their settings is said of each sweep by itself.
    """
    made = (
        capacity_that_suffices,
        best_of_recipes,
        forgetting_and_step_size,
        trend_over_capacities,
    )
    of_sweeps = [
        _naming_its_sweep(results, sweep, conclusion)
        for make in made
        for sweep in results.sweeps
        for conclusion in make(results, sweep)
    ]
    return [*recommended_against_base(results), *best_of_sweeps(results), *of_sweeps]


def _naming_its_sweep(results: Results, sweep: Sweep, conclusion: Conclusion) -> Conclusion:
    """Name the sweep, if there are several."""
    if len(results.sweeps) == 1:
        return conclusion
    return replace(conclusion, statement=f"{sweep.title}: {conclusion.statement}")
