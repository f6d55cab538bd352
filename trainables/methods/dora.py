"""DoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.low_rank import LowRank, dora_update


class Dora(LowRank):
    """W = m (W0 + s B A) / norm(W0 + s B A), with a norm for each output and a trained m."""

    name: ClassVar[str] = "dora"
    title: ClassVar[str] = "DoRA"
    source: ClassVar[str] = "Liu et al. 2024, 2402.09353"
    served_by_vllm: ClassVar[bool] = False
    peft_options: ClassVar[Mapping[str, Any]] = {"use_dora": True}
    interpolated: ClassVar[tuple[str, ...]] = ("lora_magnitude_vector",)
    scales_linearly: ClassVar[bool] = False

    @property
    def packed(self) -> LowRankLayout | str:
        """Not."""
        return "DoRA's norms are not batched"

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I) and m (O)."""
        return super().layer_parameters(outputs, inputs) + outputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """As LoRA, and both outputs to which m is applied."""
        return Footprint(per_token=2 * outputs + self.rank, brief=3 * outputs * inputs)

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """DoRA's dense update."""
        return dora_update(tensors, base_OI, self.scaling)
