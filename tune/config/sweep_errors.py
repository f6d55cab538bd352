"""Rewords pydantic's errors about a sweep file in the terms of the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainables.errors import Fault, did_you_mean
from trainables.methods import METHODS
from tune.config.recipe_space import SPACES
from tune.config.search_config import SearchConfig
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_keys import KeyPath, SweepKeys, dotted, is_inside, parts_of

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
    **dict.fromkeys(
        ("dict_type", "model_type", "union_tag_not_found"),
        "must be a section with keys of its own",
    ),
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


def reworded(
    error: ValidationError, where: Callable[[KeyPath], str], values: dict[str, Any]
) -> list[Fault]:
    """One fault for each error.

    Args:
        error: what pydantic raised for a `SweepConfig`.
        where: returns `file:line` of a location in the file.
        values: of the file.
    """
    keys = SweepKeys(values)
    details = [(detail, _without_tags(detail["loc"])) for detail in error.errors()]
    unknown = [place for detail, place in details if _is_unknown(detail, place, keys)]
    misspelt = {meant for place in unknown for meant in keys.meant(place)}
    faults: list[Fault] = []
    for detail, place in details:
        kind = detail["type"]
        if kind == "too_short" and any(is_inside(other, place) for _, other in details):
            continue  # its items are wrong, not their number
        if kind == "missing" and place in misspelt:
            continue
        if kind == "value_error":  # from a validator of ours: `rule; remedy`
            rule, _, remedy = str(detail["ctx"]["error"]).partition("; ")
            if any(meant[:-1] == place and meant[-1] in rule.split() for meant in misspelt):
                continue
            word, _, rest = rule.partition(" ")
            if word in keys.fields_at(place):  # such as `low must be ...`
                place, rule = (*place, word), rest
        elif kind == "union_tag_invalid":
            place, rule, remedy = _method_fault(detail, place, keys)
        elif place in unknown:
            rule, remedy = keys.unknown(place)
            if place[2:-1] == ("loss",):
                place, rule = place[:-1], f"{rule}, got {place[-1]}"
        else:
            rule, remedy = _rule(detail), _remedy(detail, place, keys)
        faults.append(Fault(dotted(place), rule, remedy, where(place)))
    return list(dict.fromkeys(faults))


def _is_unknown(detail: ErrorDetails, place: KeyPath, keys: SweepKeys) -> bool:
    """Whether the key at a place is unknown; a value is no recipe's, whatever its key."""
    if detail["type"] in ("union_tag_not_found", "model_type") and len(place) == 2:
        return not (keys.is_known(place) or place[-1] in SPACES)
    return detail["type"] == "extra_forbidden"


def _method_fault(
    detail: ErrorDetails, place: KeyPath, keys: SweepKeys
) -> tuple[KeyPath, str, str]:
    """Place, rule and remedy for a recipe of an unknown method."""
    recipe, method = place[-1], detail["input"]["method"]
    known = f"known: {', '.join(METHODS.names)}"
    if method != recipe:
        rule = f"must be a known method, got {shown(method)}"
        return (*place, "method"), rule, did_you_mean(method, METHODS.names) or known
    near = did_you_mean(recipe, [*METHODS.names, *SearchConfig.model_fields])
    if not near and (meant := keys.meant(place)):
        return place, "unknown key", keys.instead(place, meant)
    rule = "is no method, so the recipe must name its `method`"
    return place, rule, near or known


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


def _rule(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
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


def _remedy(detail: ErrorDetails, place: KeyPath, keys: SweepKeys) -> str:
    kind, value = detail["type"], detail["input"]
    match kind:
        case "union_tag_not_found":
            return f"known: {', '.join(sorted(SPACES[str(place[-1])].model_fields))}"
        case "missing":
            choices = [part for part in parts_of(keys.type_at(place)) if isinstance(part, str)]
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
            fields = keys.fields_at(place)
            main = next((name for name in ("name", "path") if name in fields), None)
            is_name = main and isinstance(value, str)
            return f"write {{{main}: {shown(value)}}}" if is_name else f"known: {', '.join(fields)}"
    return ""
