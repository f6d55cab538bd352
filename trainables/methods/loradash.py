"""LoRA-Dash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.low_rank import LowRank

_EPSILON = 1e-6  # added to singular values


class LoraDash(LowRank):
    """W0 + s B A + U_D diag(d) V_D^T: from a step on, the task's directions of W0 are trained too.

    After step t, with W0 = U S V^T and dW = s B A, direction i scores
    |u_i^T dW v_i| / (S_i + 1e-6). The D directions of the highest scores are U_D (O, D) and
    V_D (I, D), which then stay. d (D) starts at 0; Adam counts its steps from t on.

    It is one LoRA of rank R + D, of which V_D^T is the end of A and U_D diag(d) / s that of B: any
    PEFT loads what is saved. There d itself is left out, as B has it.

    Attributes:
        directions: D.
        start_step: t; in a training of no more steps the method is LoRA.
        dropout: share of a layer's inputs that is dropped before A and V_D.
    """

    name: ClassVar[str] = "loradash"
    title: ClassVar[str] = "LoRA-Dash"
    source: ClassVar[str] = "Si et al. 2024, 2409.01035"
    takes_4bit: ClassVar[bool] = False

    directions: int = Field(default=8, ge=1)
    start_step: int = Field(default=100, ge=1)

    @classmethod
    def example(cls) -> Self:
        """With directions from the second step on."""
        return cls(rank=4, alpha=8.0, directions=4, start_step=2)

    def options(self, steps: int) -> dict[str, Any]:
        """With room for the directions, and the scaling of the rank."""
        whole = self.rank + self.directions
        return {**super().options(steps), "r": whole, "lora_alpha": self.scaling * whole}

    def start_layer(self, layer: Any, weight_OI: Callable[[], Any], observed: Any) -> None:
        """Add d and U_D, both 0, and let gradients reach A, B and d alone."""
        import torch

        A, B = layer.lora_A["default"], layer.lora_B["default"]
        A.weight.data[self.rank :] = 0
        A.weight.register_hook(lambda gradient_RI: _zero_after(gradient_RI, self.rank, 0))
        B.weight.register_hook(lambda gradient_OR: _zero_after(gradient_OR, self.rank, 1))
        layer.dash = torch.nn.Parameter(A.weight.data.new_zeros(self.directions))
        left_OD = B.weight.data.new_zeros(len(B.weight), self.directions)
        layer.register_buffer("dash_left", left_OD, persistent=False)
        layer.dash_base, layer.dash_is_chosen = weight_OI, False

        def pass_to_d(_: Any, arguments: tuple[Any, ...], output: Any) -> Any:
            """Adds 0, with the gradient of U_D diag(d) V_D^T x by d, whose value is in B."""
            if not torch.is_grad_enabled():
                return output
            zero_D = (layer.dash - layer.dash.detach()) / self.scaling
            added = (arguments[0][..., self.rank :] * zero_D) @ layer.dash_left.T
            return output + added.to(output.dtype)

        B.register_forward_hook(pass_to_d)

    def before_step(self, model: Any) -> None:
        """Keep V_D, which weight decay would change, and leave d out before it starts."""
        for layer in _layers(model).values():
            layer.kept = layer.lora_A["default"].weight.data[self.rank :].clone()
            if not layer.dash_is_chosen:
                layer.dash.grad = None  # so that Adam does not count the step

    def after_step(self, model: Any, step: int) -> None:
        """Put V_D back and d into B; after step t, choose the directions."""
        for layer in _layers(model).values():
            A_RI, B_OR = (each["default"].weight.data for each in (layer.lora_A, layer.lora_B))
            A_RI[self.rank :] = vars(layer).pop("kept")
            B_OR[:, self.rank :] = layer.dash_left * (layer.dash.data / self.scaling)
            if step == self.start_step:
                left_OD, right_DI = self._chosen(
                    layer.dash_base().detach().float(), B_OR[:, : self.rank], A_RI[: self.rank]
                )
                layer.dash_left.copy_(left_OD)
                A_RI[self.rank :] = right_DI
                layer.dash_is_chosen = True

    def _chosen(self, weight_OI: Any, B_OR: Any, A_RI: Any) -> tuple[Any, Any]:
        """U_D and V_D^T."""
        import torch

        left_OK, values_K, right_KI = torch.linalg.svd(weight_OI, full_matrices=False)
        along_K = ((left_OK.T @ B_OR.float()) * (right_KI @ A_RI.float().T)).sum(dim=1)
        scores_K = (self.scaling * along_K).abs() / (values_K + _EPSILON)
        best_D = scores_K.topk(self.directions).indices
        return left_OK[:, best_D], right_KI[best_D]

    def extra_state(self, model: Any) -> dict[str, Any]:
        """U_D of each layer, once it is chosen; V_D is in A."""
        layers = _layers(model).items()
        return {name: layer.dash_left for name, layer in layers if layer.dash_is_chosen}

    def load_extra_state(self, model: Any, tensors: dict[str, Any]) -> None:
        """In each layer."""
        layers = _layers(model)
        for name, left_OD in tensors.items():
            layers[name].dash_left.copy_(left_OD)
            layers[name].dash_is_chosen = True

    def trained_numbers(self, parameter: str, numbers: int) -> int:
        """All of d, and A's and B's without the directions."""
        is_factor = ".lora_" in parameter
        return numbers * self.rank // (self.rank + self.directions) if is_factor else numbers

    @property
    def packed(self) -> LowRankLayout | str:
        """It does not."""
        return "its directions are chosen in training"

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I) of A and B, and D of d."""
        return super().layer_parameters(outputs, inputs) + self.directions

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """D (2 O + I) of U_D, of U_D diag(d) in B, and of V_D in A."""
        return self.directions * (2 * outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x, V_D^T x and that times 0 for each token; gradient and moments of V_D and U_D d.

        The singular vectors exist for one layer at a time, once, when no activations do.
        """
        dropped = inputs if self.dropout else 0
        return Footprint(
            per_token=self.rank + 2 * self.directions + dropped,
            mask=dropped,
            per_layer=3 * self.directions * (outputs + inputs),
            brief_per_token=outputs,
        )

    def misfit(self, shape: ModelShape) -> str | None:
        """A matrix has no more directions than its shorter side."""
        shortest = min(min(size) for size in self._sizes(shape))
        is_above = self.directions > shortest
        return f"directions {self.directions} is above {shortest}" if is_above else None


def _zero_after(gradient: Any, first: int, dimension: int) -> Any:
    """A gradient of which only the first rows or columns are not 0."""
    rest = gradient.shape[dimension] - first
    masked = gradient.clone()
    masked.narrow(dimension, first, rest).zero_()
    return masked


def _layers(model: Any) -> dict[str, Any]:
    """By name, the same whatever wraps the model."""
    return {name: each for name, each in model.named_modules() if hasattr(each, "dash_left")}
