"""RAC-LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.low_rank import LowRank


class RacLora(LowRank):
    """W0 + s sum_k B_k A_k, whose terms are trained one after the other: a chain of K links.

    A_k (R, I) is random and frozen. B_k (O, R) starts at 0 and is trained in link k alone, with
    Adam's moments and step count from zero; after it s B_k A_k stays as it is. On a quadratic loss
    whose links are solved exactly, a link contracts the error by 1 - R / I in expectation, where
    one LoRA stalls at the best error of its rank.

    It is one LoRA of rank K R: PEFT draws the entries of A independently of each other, so that
    all A_k can be drawn at the start, and any PEFT loads what is saved.

    Attributes:
        rank: R of each link.
        links: K. They share the steps evenly; with fewer steps than links some stay at 0.
    """

    name: ClassVar[str] = "raclora"
    title: ClassVar[str] = "RAC-LoRA"
    source: ClassVar[str] = "Malinovsky et al. 2024, 2410.08305"
    label_fields: ClassVar[tuple[str, ...]] = ("alpha", "links")

    links: int = Field(default=4, ge=1)

    def options(self, steps: int) -> dict[str, Any]:
        """With the rank of all links, and the scaling of one."""
        total = {"r": self.links * self.rank, "lora_alpha": self.links * self.alpha}
        return {**super().options(steps), **total}

    def peft_config(self, steps: int) -> Any:
        """With the number of steps, which is not saved."""
        config = super().peft_config(steps)
        config.steps = steps
        return config

    def start_layer(self, layer: Any, weight_OI: Callable[[], Any], observed: Any) -> None:
        """Pass on only the gradient of the link that is trained."""

        def link_gradient(gradient_OR: Any) -> Any:
            masked_OR = gradient_OR.new_zeros(gradient_OR.shape)
            self._columns(masked_OR, layer.link).copy_(self._columns(gradient_OR, layer.link))
            return masked_OR

        layer.link = 0
        layer.lora_B["default"].weight.register_hook(link_gradient)

    def before_step(self, model: Any) -> None:
        """Keep B, whose other links weight decay would change."""
        for layer in _layers(model):
            layer.kept = layer.lora_B["default"].weight.detach().clone()

    def after_step(self, model: Any, step: int) -> None:
        """Put the other links back, and train the next one when its first step is next."""
        following = self._link(model, step + 1)
        for layer in _layers(model):
            B_OR, kept_OR = layer.lora_B["default"].weight.data, vars(layer).pop("kept")
            self._columns(kept_OR, layer.link).copy_(self._columns(B_OR, layer.link))
            B_OR.copy_(kept_OR)
            layer.link = following

    def restarts_optimizer(self, model: Any, step: int) -> bool:
        """After the last step of each link but the last."""
        return self._link(model, step) != self._link(model, step + 1)

    def extra_state(self, model: Any) -> dict[str, Any]:
        """The link that is trained."""
        import torch

        return {"link": torch.tensor(_layers(model)[0].link)}

    def load_extra_state(self, model: Any, tensors: dict[str, Any]) -> None:
        """In each layer."""
        for layer in _layers(model):
            layer.link = int(tensors["link"])

    def _link(self, model: Any, step: int) -> int:
        """The link, from 0, that a step (from 1) trains."""
        steps: int = model.peft_config["default"].steps
        return min((step - 1) * self.links // steps, self.links - 1)

    def _columns(self, B_OR: Any, link: int) -> Any:
        """A view of B's columns of that link."""
        return B_OR[:, link * self.rank : (link + 1) * self.rank]

    def is_trained(self, parameter: str) -> bool:
        """All but A."""
        return ".lora_A." not in parameter

    def trained_numbers(self, parameter: str, numbers: int) -> int:
        """Those of one link."""
        return numbers // self.links

    @property
    def packed(self) -> LowRankLayout | str:
        """It does not."""
        return "its links are trained one after the other"

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R O of one B_k; after the training K times as many have been trained."""
        return self.rank * outputs

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """K R I of A, and (K - 1) R O of the other links' B."""
        return self.rank * (self.links * inputs + (self.links - 1) * outputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x for each token and dropout's mask; gradient and moments of the other links' B."""
        unused = 3 * (self.links - 1) * self.rank * outputs
        mask = inputs if self.dropout else 0
        per_token = self.links * self.rank
        return Footprint(per_token=per_token, mask=mask, per_layer=unused, keeps_input=False)


def _layers(model: Any) -> list[Any]:
    return [each for each in model.modules() if "default" in getattr(each, "lora_A", {})]
