"""What the data say: sentences with their evidence, or with what is missing.

No sentence is written by hand for a sweep; each comes with the numbers that selected it.
p-values over trials are indicative: a sampler that learns from results does not draw at random.
"""

from __future__ import annotations

from dataclasses import replace

from analysis.conclusions.comparisons import (
    best_of_sweeps,
    full_against_lora,
    recommended_against_base,
)
from analysis.conclusions.conclusion import Conclusion
from analysis.conclusions.rank_trends import forgetting_and_step_size, trend_over_ranks
from analysis.conclusions.sufficient_rank import rank_that_suffices
from analysis.shown_sweeps import Results
from analysis.sweeps import Sweep

__all__ = ["Conclusion", "conclude"]


def conclude(results: Results) -> list[Conclusion]:
    """Every conclusion that the tasks and methods allow, most relevant first.

    What compares trials by their settings is said of each sweep by itself; each needs LoRA trials.
    """
    made = (
        rank_that_suffices,
        full_against_lora,
        forgetting_and_step_size,
        trend_over_ranks,
    )
    of_sweeps = [
        _naming_its_sweep(results, sweep, conclusion)
        for make in made
        for sweep in filter(_searches_lora, results.sweeps)
        for conclusion in make(results, sweep)
    ]
    return [*recommended_against_base(results), *best_of_sweeps(results), *of_sweeps]


def _searches_lora(sweep: Sweep) -> bool:
    """Whether there is anything to say of LoRA: its search may be edited, or still to begin."""
    is_asked_for = sweep.settings.search.get("lora") is not None
    return is_asked_for or any(record.rank is not None for record in sweep.trials)


def _naming_its_sweep(results: Results, sweep: Sweep, conclusion: Conclusion) -> Conclusion:
    """Name the sweep, if there are several."""
    if len(results.sweeps) == 1:
        return conclusion
    return replace(conclusion, statement=f"{sweep.title}: {conclusion.statement}")
