"""AdaMSS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.peft_method import PeftMethod


class AdaMss(PeftMethod):
    """W0 + B_k A_k V for the outputs of each cluster k; V are the R strongest directions of W0.

    Attributes:
        subspace_rank: of B_k A_k.
        rank: R of V (R, I).
        subspaces: number of clusters, found by k-means.
    """

    name: ClassVar[str] = "adamss"
    title: ClassVar[str] = "AdaMSS"
    source: ClassVar[str] = "Zheng et al. 2025, NeurIPS, openreview 8ZdWmpYxT0"
    peft_class: ClassVar[str] = "AdamssConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "subspace_rank": "subspace_rank",
        "rank": "r",
        "subspaces": "num_subspaces",
    }
    capacity_field: ClassVar[str | None] = "subspace_rank"
    scaled: ClassVar[tuple[str, ...]] = ("adamss_B",)

    subspace_rank: int = Field(default=1, ge=1)
    rank: int = Field(default=100, ge=1)
    subspaces: int = Field(default=5, ge=1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """A_k of all clusters, and B_k for each output, if no cluster is smaller than its rank."""
        rank = min(self.rank, outputs, inputs)
        return self.subspace_rank * (self.subspaces * rank + outputs)

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """V, and the outputs in the order of their clusters."""
        return min(self.rank, outputs, inputs) * inputs + outputs
