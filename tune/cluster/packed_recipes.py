"""Which recipes' trials are packed: one set of hosts serves all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainables.config import TrialConfig
from trainables.methods.base import LowRankLayout
from tune.config.sweep_config import SweepConfig
from tune.search.trial_ids import largest_trial, why_no_trial_is_packed


@dataclass(frozen=True)
class PackedRecipes:
    """The recipes whose `slots` is not 0.

    Attributes:
        names: those whose trials train in slots, in the order of the sweep file; possibly empty.
        alone: why the trials of each of the others train by themselves.
    """

    names: tuple[str, ...] = ()
    alone: dict[str, str] = field(default_factory=dict)

    def messages(self) -> list[str]:
        """Which trials train by themselves, a line for each reason."""
        recipes: dict[str, list[str]] = {}
        for recipe, reason in self.alone.items():
            recipes.setdefault(reason, []).append(recipe)
        return [
            f"each trial of {', '.join(names)} trains by itself: {reason}"
            for reason, names in recipes.items()
        ]


def packed_recipes(config: SweepConfig) -> PackedRecipes:
    """The recipes whose trials train in slots.

    All hosts are alike: the first such recipe sets their resources and slots, and the layers that
    adapters are put on. A recipe that differs in these trains by itself.
    """
    names: list[str] = []
    alone: dict[str, str] = {}
    for recipe in config.search.recipes:
        if config.recipe_resources(recipe).slots == 0:
            continue
        reason = why_no_trial_is_packed(config, recipe)
        if reason is None and names:
            reason = _why_not_beside(config, recipe, names[0])
        if reason is None:
            names.append(recipe)
        else:
            alone[recipe] = reason
    return PackedRecipes(tuple(names), alone)


def _why_not_beside(config: SweepConfig, recipe: str, first: str) -> str | None:
    """Why the hosts of the first recipe cannot serve another; None if they can."""
    if config.recipe_resources(recipe) != config.recipe_resources(first):
        ours, theirs = config.resources_field(recipe), config.resources_field(first)
        return f"{ours} differs from {theirs}, and all slot hosts are alike"
    if _modules(config, recipe) != _modules(config, first):
        fields = f"search.{recipe}.target_modules differ from search.{first}'s"
        return f"{fields}, and slots of one base adapt the same layers"
    return None


def _modules(config: SweepConfig, recipe: str) -> object:
    return largest_trial(config, recipe).method.modules


def largest_in_slots(config: SweepConfig, recipes: Sequence[str]) -> str:
    """The packed recipe with the trial that takes the most memory."""
    return max(recipes, key=lambda recipe: _bulk(largest_trial(config, recipe)))


def _bulk(trial: TrialConfig) -> tuple[int, int, bool]:
    """Orders packed trials by the memory of a slot: samples in a pass, rank, dropout's masks."""
    layout = trial.method.packed
    assert isinstance(layout, LowRankLayout)  # noqa: S101 - it is packed
    return trial.train.micro_batch_size, layout.rank, layout.dropout > 0
