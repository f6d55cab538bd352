"""The keys that a sweep file may have, and which of them an unknown key may mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

from trainables.errors import did_you_mean, nearest
from trainables.methods import METHODS
from tune.config.key_aliases import ANY_RECIPE, REMEDIES, SAME_MEANING
from tune.config.limits import RecipeResources, ResourcesConfig
from tune.config.recipe_space import PARAMETERS, SPACES
from tune.config.search_config import SearchConfig
from tune.config.sweep_config import SweepConfig

KeyPath = tuple[str | int, ...]
_Meaning = TypeVar("_Meaning")
# More recipes are written as one.
_MOST_RECIPES = 3
_MOST_METHODS = 3


class SweepKeys:
    """The keys that a sweep file may have, some of which are the names of its recipes.

    Args:
        values: of the sweep file.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        search = _section(values, "search", SearchConfig)
        methods = {name: own.get("method", name) for name, own in search if isinstance(own, dict)}
        self._methods = {name: own for name, own in methods.items() if own in SPACES}
        self._types = dict(_TYPES)
        for recipe, method in self._methods.items():
            self._types |= _with_inner(("search", recipe), SPACES[method])
        resources = _section(values, "resources", ResourcesConfig)
        for name in (*self._methods, *self._methods.values(), *(key for key, _ in resources)):
            if name in {*self._methods, *METHODS.names}:
                self._types |= _with_inner(("resources", name), RecipeResources)

    def type_at(self, place: KeyPath) -> Any:
        """Type of what stands at a location; within a list or a mapping, that of all of it."""
        names = tuple(part for part in place if isinstance(part, str))
        while names and names not in self._types:
            names = names[:-1]
        return self._types.get(names, SweepConfig)

    def fields_at(self, place: KeyPath) -> list[str]:
        """Keys of the section at a location."""
        models = models_in(self.type_at(place))
        fields = {name for model in models for name in model.model_fields}
        named = {str(key[-1]) for key in self._types if key[:-1] == place and len(key) == 2}
        return sorted(fields | named if any(map(_takes_names, models)) else fields)

    def is_known(self, place: KeyPath) -> bool:
        """Whether there is such a key."""
        return tuple(part for part in place if isinstance(part, str)) in self._types

    def unknown(self, place: KeyPath) -> tuple[str, str]:
        """Rule and remedy for an unknown key."""
        section, key = place[:-1], str(place[-1])
        if remedy := _alias(REMEDIES, place):
            return "unknown key", remedy
        if section[2:] == ("loss",):
            known = self.fields_at(section)
            return "must be a known loss", did_you_mean(key, known) or f"known: {', '.join(known)}"
        meant = self.meant(place)
        if method := self._methods.get(str(section[-1])) if section[:1] == ("search",) else None:
            is_misspelt = any(other[:-1] == section for other in meant)
            others = [each for each in SPACES if key in SPACES[each].model_fields]
            if others and not is_misspelt:
                return _rule_of_other(method, key), _list_of(others)
        return "unknown key", self.instead(place, meant)

    def meant(self, place: KeyPath) -> list[KeyPath]:
        """Places of keys that an unknown key may mean, by its name here or in other tools."""
        section, siblings = place[:-1], self._known_at(place)
        if _alias(REMEDIES, place):
            return []
        if same := _alias(SAME_MEANING, place):
            found = [each for key in same for each in self._expanded(split_key(key))]
            return [each for each in found if each[:-1] == section] or found
        elsewhere = self._places_of(place[-1])
        if elsewhere and not section:
            return elsewhere
        # A misspelt key of the same section, such as confirm.seed, before one of another section.
        near = nearest(place[-1], siblings, 0.85 if elsewhere else 0.6)
        return [(*section, near)] if near else elsewhere

    def instead(self, place: KeyPath, meant: list[KeyPath]) -> str:
        """What may be written for an unknown key."""
        *others, last = [_as_beside(place, each) for each in meant] or [""]
        either = f"{', '.join(others)} or {last}" if others else last
        return f"did you mean {either}?" if last else f"known: {', '.join(self._known_at(place))}"

    def _known_at(self, place: KeyPath) -> list[str]:
        """Keys that are valid in place of an unknown one."""
        return [*self.fields_at(place[:-1]), *(["extends"] if len(place) == 1 else [])]

    def _places_of(self, key: str | int) -> list[KeyPath]:
        """Every place of a key outside lists, the least nested first."""
        lists = [place for place, kind in self._types.items() if get_origin(kind) is tuple]
        found = [place for place in self._types if place[-1] == key]
        places = [p for p in found if not any(is_inside(p, outer) for outer in lists)]
        if not places and any(key in space.model_fields for space in SPACES.values()):
            return [("search", ANY_RECIPE, key)]
        return sorted(_few(places), key=len)

    def _expanded(self, place: KeyPath) -> list[KeyPath]:
        """A place in any recipe as its places in the file's recipes."""
        if ANY_RECIPE not in place:
            return [place]
        found = [(*place[:1], recipe, *place[2:]) for recipe in self._methods]
        return _few([each for each in found if each in self._types]) or [place]


def split_key(key: str) -> KeyPath:
    """The location that a dotted key denotes."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def dotted(location: KeyPath) -> str:
    """A location as written with `--set`."""
    return ".".join(map(str, location))


def is_inside(inner: KeyPath, outer: KeyPath) -> bool:
    """Whether a location is within another."""
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation is made of."""
    parts = parts_of(annotation)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def parts_of(annotation: Any) -> list[Any]:
    """The types and literals that an annotation is made of."""
    inner = get_args(annotation)
    return [part for each in inner for part in parts_of(each)] if inner else [annotation]


def _section(values: dict[str, Any], name: str, model: type[BaseModel]) -> list[tuple[str, Any]]:
    """The keys of a section that are names, with their values."""
    section = values.get(name)
    if not isinstance(section, dict):
        return []
    return [(key, own) for key, own in section.items() if key not in model.model_fields]


def _takes_names(model: type[BaseModel]) -> bool:
    return model.model_config.get("extra") == "allow"


def _alias(table: dict[str, _Meaning], place: KeyPath) -> _Meaning | None:
    """What a table of `key_aliases` has for the key at a place."""
    return table.get(f"{place[0]}.{place[-1]}") or table.get(str(place[-1]))


def _rule_of_other(method: str, key: str) -> str:
    """The rule that a field of another method breaks."""
    own = METHODS.find(method).capacity_field
    is_capacity = key == PARAMETERS or any(each.capacity_field == key for each in METHODS)
    if not is_capacity:
        return f"is no field of {method}"
    return f"is no field of {method}, " + (f"whose capacity is {own}" if own else "of one size")


def _list_of(methods: list[str]) -> str:
    """Methods that have a field."""
    if len(methods) > _MOST_METHODS:
        return (
            f"{', '.join(methods[:_MOST_METHODS])} and {len(methods) - _MOST_METHODS} more have it"
        )
    return f"{' and '.join(methods)} {'has' if len(methods) == 1 else 'have'} it"


def _few(places: list[KeyPath]) -> list[KeyPath]:
    """The places, those in many recipes as one."""
    named = [place for place in places if place[0] in ("search", "resources") and len(place) > 2]
    if len(named) <= _MOST_RECIPES:
        return places
    merged = [(p[0], ANY_RECIPE, *p[2:]) if p in named else p for p in places]
    return list(dict.fromkeys(merged))


def _as_beside(place: KeyPath, meant: KeyPath) -> str:
    """How to refer to a key: by its last name alone within the same section."""
    if place[:-1] == meant[:-1]:
        return str(meant[-1])
    return dotted(meant) if len(meant) > 1 else f"{meant[0]} at the top level"


def _with_inner(place: KeyPath, model: type[BaseModel]) -> dict[KeyPath, Any]:
    return {place: model, **dict(_types_in(model, place))}


def _types_in(model: type[BaseModel], place: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    for name, field in model.model_fields.items():
        yield (*place, name), field.annotation
        for inner in models_in(field.annotation):
            yield from _types_in(inner, (*place, name))


# The type of each key by its place, in items of lists without their index.
_TYPES = dict(_types_in(SweepConfig, ()))
