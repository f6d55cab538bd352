"""EVA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Seen
from trainables.methods.low_rank import LowRank


class Eva(LowRank):
    """LoRA whose A starts as the first R principal components of the layer's inputs.

    They are those at labelled tokens of the training data. Every layer has the same rank, as with
    `rho: 1` in the paper, which else gives some more of the rank of others.
    """

    name: ClassVar[str] = "eva"
    title: ClassVar[str] = "EVA"
    source: ClassVar[str] = "Paischer et al. 2024, 2410.07170"
    starts_from: ClassVar[Literal["general_text", "data"] | None] = "data"

    def observe(self, seen: Seen) -> Any:
        """Moments (I + 1, I + 1) of the inputs beside 1: x^T x, their sum, and their number."""
        from torch.nn.functional import pad

        x_TJ = pad(seen.inputs_TI[seen.is_learned_T], (0, 1), value=1.0)
        return x_TJ.T @ x_TJ

    def start_layer(self, layer: Any, weight_OI: Callable[[], Any], observed: Any) -> None:
        """Set A to the components, by falling variance."""
        import torch

        sum_I = observed[:-1, -1]
        scatter_II = observed[:-1, :-1] - torch.outer(sum_I, sum_I) / observed[-1, -1]
        components_II = torch.linalg.eigh(scatter_II).eigenvectors.T.flip(0)
        layer.lora_A["default"].weight.data.copy_(components_II[: self.rank])

    def misfit(self, shape: ModelShape) -> str | None:
        """There are no more components than inputs."""
        least = min(inputs for _, inputs in self._sizes(shape))
        return f"rank {self.rank} is above {least}" if self.rank > least else None
