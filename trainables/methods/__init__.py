"""How a model is made trainable: one file a method, found by its name (docs/adding_a_method.md)."""

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from trainables.methods.base import Method
from trainables.named import Catalogue

METHODS: Catalogue[Method] = Catalogue(__name__, __path__, Method)
AnyMethod = Annotated[SerializeAsAny[Method], BeforeValidator(METHODS.parse)]
"""A field of a configuration that holds any method."""

__all__ = ["METHODS", "AnyMethod", "Method"]
