"""AdaLoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Scaled


class AdaLoRA(Scaled):
    """W0 + s B diag(e) A of a larger rank, whose least important parts are pruned in training.

    After a warm-up, more and more entries of e are set to 0 over all layers, until their average
    rank is R; the rest of the training keeps them there.

    Attributes:
        initial_ratio: the rank at the start as a multiple of R.
        warm_up, final: shares of the steps before the first and after the last entry is pruned;
            the defaults are those of PEFT's own comparison of methods.
        orthogonality: weight of the mean distance of A A^T and B^T B from 1 in the loss.
        dropout: share of a layer's inputs that is dropped before A.
    """

    name: ClassVar[str] = "adalora"
    title: ClassVar[str] = "AdaLoRA"
    source: ClassVar[str] = "Zhang et al. 2023, 2303.10512"
    peft_class: ClassVar[str] = "AdaLoraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "target_r",
        "initial_rank": "init_r",
        "alpha": "lora_alpha",
        "orthogonality": "orth_reg_weight",
        "dropout": "lora_dropout",
    }
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("lora_E",)

    initial_ratio: float = Field(default=1.5, gt=1)
    warm_up: float = Field(default=0.04, ge=0, lt=0.5)
    final: float = Field(default=0.1, ge=0, lt=0.5)
    orthogonality: float = Field(default=0.5, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def initial_rank(self) -> int:
        """Of A (R, I) and B (O, R) at the start."""
        return math.ceil(self.initial_ratio * self.rank)

    @property
    def scaling(self) -> float:
        """Alpha / initial rank, to which PEFT adds 1e-5."""
        return self.alpha / (self.initial_rank + 1e-5)

    def options(self, steps: int) -> dict[str, Any]:
        """With the steps at which the ranks are changed."""
        phases = {"tinit": int(self.warm_up * steps), "tfinal": int(self.final * steps)}
        return {**super().options(steps), **phases, "total_step": max(steps, 2)}

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """Those of the initial rank, with e; what is pruned stays in memory."""
        return self.initial_rank * (outputs + inputs + 1)

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """The initial rank itself."""
        return 1

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, A x, and the output before its scale."""
        return Footprint(per_token=outputs + self.initial_rank)

    def penalty(self, model: Any) -> Any:
        """PEFT adds it to a loss that TRL does not use."""
        import torch

        distances = []
        for name, factor in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                square_RR = factor @ factor.T if ".lora_A." in name else factor.T @ factor
                identity_RR = torch.eye(len(square_RR), device=factor.device)
                distances.append(torch.linalg.matrix_norm(square_RR - identity_RR))
        return self.orthogonality * torch.stack(distances).mean()

    def after_step(self, model: Any, step: int) -> None:
        """Score all entries by their gradients, and set those to 0 that are to be pruned."""
        model.base_model.update_and_allocate(step)

    def extra_state(self, model: Any) -> dict[str, Any]:
        """Both averages of each parameter's importance, and which entries are left."""
        import torch

        allocator, kept = model.base_model.rankallocator, model.peft_config["default"].rank_pattern
        return {
            **{f"importance/{name}": t for name, t in allocator.exp_avg_ipt.items()},
            **{f"uncertainty/{name}": t for name, t in allocator.exp_avg_unc.items()},
            **{f"kept/{name}": torch.tensor(each) for name, each in (kept or {}).items()},
        }

    def load_extra_state(self, model: Any, tensors: dict[str, Any]) -> None:
        """Where PEFT keeps them; the last importance is there only to be averaged anew."""
        found: dict[str, dict[str, Any]] = {"importance": {}, "uncertainty": {}, "kept": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            found[kind][name] = tensor.to(model.device)
        allocator = model.base_model.rankallocator
        allocator.exp_avg_ipt, allocator.exp_avg_unc = found["importance"], found["uncertainty"]
        allocator.ipt = dict(found["importance"])
        kept = {name: tensor.tolist() for name, tensor in found["kept"].items()}
        model.peft_config["default"].rank_pattern = kept or None

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """The factors s B diag(e) and A that are left."""
        return tensors["lora_B"] * tensors["lora_E"].T * self.scaling, tensors["lora_A"]
