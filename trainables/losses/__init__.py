"""What training minimises: one file a loss, found by its name."""

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from trainables.losses.base import Loss
from trainables.named import Catalogue

LOSSES: Catalogue[Loss] = Catalogue(__name__, __path__, Loss)
AnyLoss = Annotated[SerializeAsAny[Loss], BeforeValidator(LOSSES.parse)]
"""A field of a configuration that holds any loss."""

__all__ = ["LOSSES", "AnyLoss", "Loss"]
