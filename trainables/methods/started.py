"""`Started`: low-rank adapters that start elsewhere than at zero, on an untouched base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.low_rank import LowRank


class Started(LowRank):
    """W0 + s (B A - B0 A0), with A and B starting at A0 and B0, which stay.

    PEFT's own forms take s B0 A0 off the base's weights instead, which other trials share. Here it
    is one LoRA of twice the rank, A over A0 and B beside -B0, of which the first half is trained:
    its gradients are PEFT's, the model starts at the base, and any PEFT loads what is saved.
    """

    def first_factors(self, weight_OI: Any, observed: Any) -> tuple[Any, Any]:
        """B0 (O, R) and A0 (R, I), of which s B0 A0 is the start, from W0 in fp32."""
        raise NotImplementedError

    def options(self, steps: int) -> dict[str, Any]:
        """With the start beside what is trained, and the scaling of the rank."""
        return {**super().options(steps), "r": 2 * self.rank, "lora_alpha": 2 * self.alpha}

    def start_layer(self, layer: Any, weight_OI: Callable[[], Any], observed: Any) -> None:
        """Set A and B to the start and its opposite, of which gradients leave one as it is."""
        import torch

        B_OR, A_RI = self.first_factors(weight_OI().detach().float(), observed)
        factors = (layer.lora_A["default"].weight, torch.cat([A_RI, A_RI]), 0)
        others = (layer.lora_B["default"].weight, torch.cat([B_OR, -B_OR], dim=1), 1)
        for parameter, values, dimension in (factors, others):
            parameter.data.copy_(values)
            frozen = parameter.data.new_ones(parameter.shape)
            frozen.narrow(dimension, self.rank, self.rank).zero_()
            parameter.register_hook(frozen.mul)

    def before_step(self, model: Any) -> None:
        """Keep the frozen halves, which weight decay would change."""
        for layer in _layers(model):
            layer.kept = [half.clone() for half in self._frozen(layer)]

    def after_step(self, model: Any, step: int) -> None:
        """Put the frozen halves back."""
        for layer in _layers(model):
            for half, kept in zip(self._frozen(layer), vars(layer).pop("kept"), strict=True):
                half.copy_(kept)

    def _frozen(self, layer: Any) -> tuple[Any, Any]:
        A, B = (getattr(layer, name)["default"].weight.data for name in ("lora_A", "lora_B"))
        return A[self.rank :], B[:, self.rank :]

    def trained_numbers(self, parameter: str, numbers: int) -> int:
        """Half of them."""
        return numbers // 2

    @property
    def packed(self) -> LowRankLayout | str:
        """As rows of one matrix with others of twice the rank."""
        return LowRankLayout(2 * self.rank, self.scaling, self.dropout, trained=self.rank)

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I) of A0 and B0."""
        return self.rank * (outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x and A0 x for each token, and gradient and moments of the frozen half."""
        dropped = inputs if self.dropout else 0
        unused = 3 * self.rank * (outputs + inputs)
        return Footprint(per_token=2 * self.rank + dropped, mask=dropped, per_layer=unused)

    def misfit(self, shape: ModelShape) -> str | None:
        """A matrix has no more directions than its shorter side."""
        shortest = min(min(size) for size in self._sizes(shape))
        return f"rank {self.rank} is above {shortest}" if self.rank > shortest else None


def _layers(model: Any) -> list[Any]:
    return [each for each in model.modules() if "default" in getattr(each, "lora_A", {})]
