"""Checks of recipes: names, settings, resources, and what they ask of the base model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import ValidationError

from trainables.decoder_shape import ModelShape
from trainables.errors import Fault, did_you_mean
from trainables.losses import LOSSES
from trainables.methods import METHODS
from trainables.models.model_shape import read_shape, target_module_faults
from tune.config.deepspeed_settings import zero_stage
from tune.config.method_settings import OverBudget, all_settings, method_settings, smallest_method
from tune.config.recipe_space import PARAMETERS
from tune.config.sweep_config import SweepConfig

_RECIPE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")


def recipe_contradictions(config: SweepConfig) -> Iterator[Fault]:
    """Faults of recipes that the sweep file alone shows."""
    for check in (_names, _methods, _losses, _starts, _bits):
        yield from check(config)


def _names(config: SweepConfig) -> Iterator[Fault]:
    recipes = config.search.recipes
    for recipe in recipes:
        if not _RECIPE_NAME.fullmatch(recipe):
            rule = "must begin with a letter and hold only letters, digits, _ and -"
            yield Fault(f"search.{recipe}", rule)
    known = {*recipes, *METHODS.names}
    for name in config.resources.names:
        if name not in known:
            rule = "must be a recipe of this sweep, or a method"
            remedy = did_you_mean(name, known) or f"recipes: {', '.join(recipes)}"
            yield Fault(f"resources.{name}", rule, remedy)


def _methods(config: SweepConfig) -> Iterator[Fault]:
    """Settings that a method refuses, and slots for what is never packed."""
    packable = dict[str, str]()
    for recipe in config.search.recipes:
        space, section = config.search.space(recipe), config.resources_field(recipe)
        made = []
        try:
            made = [smallest_method(space, settings) for settings in all_settings(space)]
        except ValidationError as error:
            rule, _, remedy = error.errors()[0]["msg"].removeprefix("Value error, ").partition("; ")
            yield Fault(f"search.{recipe}", rule, remedy)
        reasons = [method.packed for method in made if isinstance(method.packed, str)]
        if config.recipe_resources(recipe).slots and made:
            is_packed = len(reasons) < len(made) or packable.get(section) == ""
            packable[section] = "" if is_packed else f"{reasons[0]} ({recipe})"
    for section, reason in packable.items():
        if reason:
            yield Fault(f"{section}.slots", f"must be 0, as {reason}", "leave it out")


def _losses(config: SweepConfig) -> Iterator[Fault]:
    """Losses that a recipe's method cannot train with."""
    for recipe in config.search.recipes:
        space = config.search.space(recipe)
        for loss in map(LOSSES.find, space.losses):
            field = f"search.{recipe}.loss"
            if not loss.reads_base_weights:
                continue
            if not space.kind.changes_base:
                rule = f"cannot be {loss.name}, as {space.kind.title} leaves the base's weights"
                yield Fault(field, f"{rule} as they are", "choose another loss")
            elif zero_stage(config) == 3:
                rule = f"cannot be {loss.name}, as ZeRO-3 leaves no worker the whole weights"
                yield Fault(field, rule, f"lower {config.deepspeed.stage_field} to 2")


def _starts(config: SweepConfig) -> Iterator[Fault]:
    """Methods whose start is computed from texts that the sweep does not name."""
    for recipe in config.search.recipes if config.eval.general_text is None else ():
        method = config.search.method(recipe)
        if method.starts_from == "general_text":
            rule = f"must name texts, which {method.title} starts from (search.{recipe}), got none"
            remedy = "name a file of general text, or leave the recipe out"
            yield Fault("eval.general_text", rule, remedy)


def _bits(config: SweepConfig) -> Iterator[Fault]:
    for recipe in config.search.recipes if config.model.load_in_4bit else ():
        method = config.search.method(recipe)
        if not method.takes_4bit:
            yield Fault(
                f"search.{recipe}",
                f"must be null, as {method.title} does not train on weights of 4 bits, "
                "got model.load_in_4bit: true",
                "search it in a sweep of its own, without load_in_4bit",
            )


def base_faults(config: SweepConfig) -> Iterator[Fault]:
    """Faults of recipes that the shape of the base model shows."""
    for recipe in config.search.recipes:
        axes = dict(config.search.choices(recipe))
        choices = axes.get("target_modules", ())
        named = [name for modules in choices if not isinstance(modules, str) for name in modules]
        yield from target_module_faults(config.model, f"search.{recipe}.target_modules", named)
        shape = read_shape(config.model)
        if PARAMETERS in axes:
            yield from _budget_faults(config, recipe, shape)
        elif shape is not None:
            yield from _misfits(config, recipe, shape)


def _misfits(config: SweepConfig, recipe: str, shape: ModelShape) -> Iterator[Fault]:
    space = config.search.space(recipe)
    made = (method_settings(space, settings, shape) for settings in all_settings(space))
    for reason in dict.fromkeys(filter(None, (method.misfit(shape) for method in made))):
        rule = f"does not fit the layers of {config.model.name}: {reason}"
        yield Fault(f"search.{recipe}", rule, "choose another, or other target_modules")


def _budget_faults(config: SweepConfig, recipe: str, shape: ModelShape | None) -> Iterator[Fault]:
    space, field = config.search.space(recipe), f"search.{recipe}.{PARAMETERS}"
    if shape is None:
        capacity = space.kind.capacity_field
        rule = "needs the shape of the model, which its config.json does not tell"
        yield Fault(field, rule, f"give model.shape, or {capacity} instead")
        return
    too_small: dict[int, int] = {}
    for settings in all_settings(space):
        try:
            method_settings(space, settings, shape)
        except OverBudget as error:
            budget = settings[PARAMETERS]
            too_small[budget] = max(too_small.get(budget, 0), error.least or 0)
    for budget, least in too_small.items():
        rule = f"{space.kind.title} has no such {space.kind.capacity_field} on this model"
        if least:
            rule = f"must be at least {least:,}, which {space.kind.title} trains, got {budget:,}"
        yield Fault(field, rule, "raise it, or adapt fewer target_modules")
