"""Rewords pydantic's errors about a sweep file in the terms of the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainables.errors import Fault, did_you_mean, nearest
from tune.config.key_aliases import REMEDIES, SAME_MEANING
from tune.config.sweep_config import SweepConfig

KeyPath = tuple[str | int, ...]
_Meaning = TypeVar("_Meaning")

_RULES = {
    "greater_than_equal": "must be >= {ge:g}",
    "greater_than": "must be > {gt:g}",
    "less_than_equal": "must be <= {le:g}",
    "less_than": "must be < {lt:.10g}",
    "finite_number": "must be a finite number",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "tuple_type": "must be a list",
    "too_short": "must hold at least {min_length} value",
    **dict.fromkeys(("dict_type", "model_type"), "must be a section with keys of its own"),
}
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_\-]*$": "must begin with a letter or digit and hold only letters, "
    "digits, _ and -",
    r"^[A-Za-z0-9_.\-]+$": "must hold only letters, digits, _ . and -",
}
_EXAMPLES: dict[KeyPath, str] = {
    ("objectives",): "such as [{metric: validation/loss, mode: min}, {metric: forgetting/mean, "
    "mode: min}], or with tasks in eval.in_domain {metric: in_domain/acc_mean, mode: max}",
    ("eval",): "such as {retention: [mmlu, hellaswag], limit: 100}, or {} for no tasks",
    ("constraints",): "such as [forgetting/mean <= 0.05], or [] for none",
    ("early_stopping", "metrics"): "such as {in_domain/acc_mean: 1, forgetting/mean: -1}",
    ("deepspeed", "config"): "name a file in deepspeed.config_file",
}
# Other tools give counts of these.
_SHARE_OF: dict[str | int, str] = {"warmup": "steps", "validation_fraction": "rows"}
_LONGEST_VALUE = 60


def reworded(error: ValidationError, where: Callable[[KeyPath], str]) -> list[Fault]:
    """One fault for each error.

    Args:
        error: what pydantic raised for a `SweepConfig`.
        where: returns `file:line` of a location in the file.
    """
    details = [(detail, _without_tags(detail["loc"])) for detail in error.errors()]
    unknown = [place for detail, place in details if detail["type"] == "extra_forbidden"]
    misspelt = {meant for place in unknown for meant in _meant(place)}
    faults: list[Fault] = []
    for detail, place in details:
        kind = detail["type"]
        if kind == "too_short" and any(_is_inside(other, place) for _, other in details):
            continue  # its items are wrong, not their number
        if kind == "missing" and place in misspelt:
            continue
        if kind == "value_error":  # from a validator of ours: `rule; remedy`
            rule, _, remedy = str(detail["ctx"]["error"]).partition("; ")
            word, _, rest = rule.partition(" ")
            if word in _fields_at(place):  # such as `low must be ...`
                place, rule = (*place, word), rest
        else:
            rule, remedy = _rule(detail), _remedy(detail, place)
        faults.append(Fault(dotted(place), rule, remedy, where(place)))
    return list(dict.fromkeys(faults))


def dotted(location: KeyPath) -> str:
    """A location as written with `--set`."""
    return ".".join(map(str, location))


def shown(value: Any) -> str:
    """A value as YAML would write it, cut if long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(shown, value)) + "]"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _without_tags(location: KeyPath) -> KeyPath:
    """The location without the tags of union members, written `<tag>`."""
    return tuple(part for part in location if not (isinstance(part, str) and part.startswith("<")))


def _is_inside(inner: KeyPath, outer: KeyPath) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _rule(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "is required and absent"
    if kind == "literal_error":
        rule = f"must be {context['expected']}".replace("'", "")
    elif kind == "string_pattern_mismatch":
        rule = _PATTERNS.get(context["pattern"], f"must match {context['pattern']}")
    elif kind in _RULES:
        rule = _RULES[kind].format(**context)
    else:
        rule = detail["msg"].replace("Input should", "must")
    return f"{rule}, got {shown(detail['input'])}"


def _remedy(detail: ErrorDetails, place: KeyPath) -> str:
    kind, value = detail["type"], detail["input"]
    match kind:
        case "extra_forbidden":
            return _alias(REMEDIES, place) or _instead(place)
        case "missing":
            choices = [part for part in _parts(_type_at(place)) if isinstance(part, str)]
            return _EXAMPLES.get(place, f"write {' or '.join(choices)}" if choices else "")
        case "literal_error" if isinstance(value, str):
            choices = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            # Such as cosine for cosine_with_restarts, whose letters are nearer to constant.
            begun = [choice for choice in choices if value.startswith(choice)]
            return did_you_mean(begun[0] if begun else value, choices, 0.5)
        case "too_short" | "tuple_type" | "dict_type" if place in _EXAMPLES:
            return _EXAMPLES[place]
        case "less_than":
            wholes = [_SHARE_OF[part] for part in place if part in _SHARE_OF]
            return f"it is a share of the {wholes[0]}" if wholes else ""
        case "tuple_type":
            if value is None or isinstance(value, dict):  # None where all items are commented out
                return "write [] for none" if value is None else "write a list, such as [8, 16]"
            return f"write [{value}]"
        case "string_type" if isinstance(value, bool):  # it may read no, or on
            return "put it in quotes"
        case "string_type" if isinstance(value, (int, float)):
            return f'write "{value}"'
        case "model_type" if value is None:
            is_needed = len(place) == 1 and SweepConfig.model_fields[str(place[0])].is_required()
            return _EXAMPLES.get(place, "fill it in" if is_needed else "fill it in or leave it out")
        case "model_type":
            fields = _fields_at(place)
            main = next((name for name in ("name", "path") if name in fields), None)
            is_name = main and isinstance(value, str)
            return f"write {{{main}: {shown(value)}}}" if is_name else f"known: {', '.join(fields)}"
    return ""


def split_key(key: str) -> KeyPath:
    """The location that a dotted key denotes."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _alias(table: dict[str, _Meaning], place: KeyPath) -> _Meaning | None:
    """What a table of `key_aliases` has for the key at a place."""
    return table.get(f"{place[0]}.{place[-1]}") or table.get(str(place[-1]))


def _instead(place: KeyPath) -> str:
    """What may be written for an unknown key."""
    *others, last = [_as_beside(place, meant) for meant in _meant(place)] or [""]
    either = f"{', '.join(others)} or {last}" if others else last
    return f"did you mean {either}?" if last else f"known: {', '.join(_known_keys(place))}"


def _meant(place: KeyPath) -> list[KeyPath]:
    """Places of keys that an unknown key may mean, by its name here or in other tools."""
    section, siblings = place[:-1], _known_keys(place)
    if _alias(REMEDIES, place):
        return []
    if same := _alias(SAME_MEANING, place):
        return [split_key(key) for key in same]
    elsewhere = _places_of(place[-1])
    if elsewhere and not section:
        return elsewhere
    # A misspelt key of the same section, such as confirm.seed, before one of another section.
    near = nearest(place[-1], siblings, 0.85 if elsewhere else 0.6)
    return [(*section, near)] if near else elsewhere


def _places_of(key: str | int) -> list[KeyPath]:
    """Every place of a key outside lists, the least nested first."""
    lists = [place for place, kind in _TYPES.items() if get_origin(kind) is tuple]
    found = [place for place in _TYPES if place[-1] == key]
    return sorted((p for p in found if not any(_is_inside(p, outer) for outer in lists)), key=len)


def _as_beside(place: KeyPath, meant: KeyPath) -> str:
    """How to refer to a key: by its last name alone within the same section."""
    if place[:-1] == meant[:-1]:
        return str(meant[-1])
    return dotted(meant) if len(meant) > 1 else f"{meant[0]} at the top level"


def _known_keys(place: KeyPath) -> list[str]:
    """Keys that are valid in place of an unknown one."""
    return [*_fields_at(place[:-1]), *(["extends"] if len(place) == 1 else [])]


def _fields_at(place: KeyPath) -> list[str]:
    """Keys of the section at a location."""
    return sorted({name for model in _models_in(_type_at(place)) for name in model.model_fields})


def _type_at(place: KeyPath) -> Any:
    """Type of what stands at a location; within a list or a mapping, that of all of it."""
    names = tuple(part for part in place if isinstance(part, str))
    while names and names not in _TYPES:
        names = names[:-1]
    return _TYPES.get(names, SweepConfig)


def _types_in(model: type[BaseModel], place: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    for name, field in model.model_fields.items():
        yield (*place, name), field.annotation
        for inner in _models_in(field.annotation):
            yield from _types_in(inner, (*place, name))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    parts = _parts(annotation)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def _parts(annotation: Any) -> list[Any]:
    """The types and literals that an annotation is made of."""
    inner = get_args(annotation)
    return [part for each in inner for part in _parts(each)] if inner else [annotation]


# The type of each key by its place, in items of lists without their index.
_TYPES = dict(_types_in(SweepConfig, ()))
