"""Settings that choose a class by its name: a method's or a loss's, one class a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from trainables.errors import did_you_mean
from trainables.frozen import Frozen


class Named(Frozen):
    """Settings of a named kind, written and read with the name, as in `{name: lora, rank: 8}`.

    Attributes:
        name: the word for it in sweep files and records; classes without one are bases of others.
        title: how people write it, such as `LoRA`.
        source: the paper that defines it, or other source.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]

    @model_serializer(mode="wrap")
    def _with_name(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.name, **fields(self)}


Kind = TypeVar("Kind", bound=Named)


class Catalogue(Generic[Kind]):
    """The classes that a package's modules define, by name.

    Args:
        package: the package's name and path.
        kind: the classes' common base.
    """

    def __init__(self, package: str, path: list[str], kind: type[Kind]) -> None:
        for module in sorted(each.name for each in pkgutil.iter_modules(path)):
            importlib.import_module(f"{package}.{module}")
        named = [each for each in _subclasses(kind) if "name" in vars(each)]
        self._classes = {each.name: each for each in sorted(named, key=lambda each: each.name)}

    def __iter__(self) -> Iterator[type[Kind]]:
        return iter(self._classes.values())

    @property
    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        return list(self._classes)

    def find(self, name: str) -> type[Kind]:
        """The class of a name.

        Raises:
            ValueError: there is none.
        """
        if name in self._classes:
            return self._classes[name]
        remedy = did_you_mean(name, self._classes) or f"known: {', '.join(self._classes)}"
        raise ValueError(f"must be a known name, got {name}; {remedy}")

    def parse(self, value: Any) -> Any:
        """Settings from what `Named` writes; settings stay as they are."""
        if not isinstance(value, dict):
            return value
        fields = {key: each for key, each in value.items() if key != "name"}
        return self.find(str(value.get("name"))).model_validate(fields)


def _subclasses(kind: type[Kind]) -> Iterator[type[Kind]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)
