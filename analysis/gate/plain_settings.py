"""The base and tasks of a gate without a sweep, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from trainables.config import ROLES, EvalSuite, ModelConfig
from trainables.errors import Fault, UserError, collecting, did_you_mean

_SECTIONS: dict[str, type[BaseModel]] = {"model": ModelConfig, "eval": EvalSuite}


@dataclass(frozen=True)
class PlainSettings:
    """A base, and the tasks that it and a model are evaluated on."""

    base: ModelConfig
    suite: EvalSuite

    def of(self, name: str) -> ModelConfig:
        """Another model with the base's settings, such as the dtype."""
        return self.base.model_copy(update={"name": local_name(name), "revision": None})


def read_plain_settings(base: str, tasks: Sequence[str], overrides: Sequence[str]) -> PlainSettings:
    """Settings as the sections `model` and `eval` of a sweep file have them.

    Args:
        base: folder or hub name.
        tasks: each `TASK`, on which forgetting is measured, or `ROLE:TASK`.
        overrides: `KEY=VALUE`, such as `eval.limit=500`; KEY dotted, VALUE in YAML.

    Raises:
        UserError: a setting is faulty, or there is no task.
    """
    by_role: dict[str, list[Any]] = {role: [] for role in ROLES}
    for given in tasks:
        role, _, task = given.partition(":")
        is_role = role in ROLES
        by_role[role if is_role else "retention"].append(task if is_role else given)
    values: dict[str, Any] = {"model": {"name": local_name(base)}, "eval": by_role}
    faults: list[Fault] = []
    for override in overrides:
        with collecting(faults):
            _override(values, override)
    sections: list[Any] = []
    for name, section in _SECTIONS.items():
        with collecting(faults):
            sections.append(_validated(section, name, values[name]))
    if faults:
        raise UserError(faults)
    model, suite = sections
    if not suite.tasks():
        rule, remedy = "must name at least one task", "such as --tasks piqa in_domain:my_task"
        raise UserError([Fault("--tasks", rule, remedy)])
    return PlainSettings(model, suite)


def local_name(name: str) -> str:
    """The absolute path of a folder on this machine; a hub name, or anything else, as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, _, field = key.partition(".")
    if not (separator and field and section in _SECTIONS):
        rule = f"must read model.KEY=VALUE or eval.KEY=VALUE, got {override!r}"
        raise UserError([Fault("--set", rule, "such as eval.limit=500")])
    try:
        values[section][field] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        rule = f"{override}: the value is no valid YAML"
        raise UserError([Fault("--set", rule, "quote it")]) from error


def _validated(section: type[BaseModel], name: str, values: dict[str, Any]) -> BaseModel:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        faults = []
        for detail in error.errors(include_url=False):
            place = ".".join(map(str, (name, *detail["loc"])))
            rule, _, remedy = detail["msg"].removeprefix("Value error, ").partition("; ")
            if detail["type"] == "extra_forbidden":
                rule = "unknown key"
                remedy = did_you_mean(detail["loc"][-1], section.model_fields)
            elif detail["type"] != "value_error":
                rule = f"{rule.replace('Input should', 'must')}, got {detail['input']!r}"
            faults.append(Fault(place, rule, remedy))
        raise UserError(faults) from error
