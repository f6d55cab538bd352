"""LoRA-FA."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.low_rank import LowRank

_DELTA = 1e-8  # as in PEFT's LoraFAOptimizer


class LoraFa(LowRank):
    """A low-rank adapter W0 + s B A with random A that stays frozen.

    B's gradient is projected such that the update of W0 comes closest to W0's own gradient step.
    """

    name: ClassVar[str] = "lorafa"
    title: ClassVar[str] = "LoRA-FA"
    source: ClassVar[str] = "Zhang et al. 2023, 2308.03303"

    @property
    def packed(self) -> LowRankLayout | str:
        """Not."""
        return "its gradients are not projected in batches"

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R O of B."""
        return self.rank * outputs

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """R I of A."""
        return self.rank * inputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x for each token, and the mask of dropout."""
        return Footprint(per_token=self.rank, mask=inputs if self.dropout else 0, keeps_input=False)

    def is_trained(self, parameter: str) -> bool:
        """All but A."""
        return ".lora_A." not in parameter

    def before_step(self, model: Any) -> None:
        """g_B <- g_B (A A^T + delta I)^-1 / s^2, for layers of equal rank at once."""
        import torch

        factors = dict(model.named_parameters())
        by_rank = defaultdict(list)
        for name, A_RI in factors.items():
            if ".lora_A." in name:
                gradient_OR = factors[name.replace(".lora_A.", ".lora_B.")].grad
                if gradient_OR is not None:
                    by_rank[len(A_RI)].append((A_RI.detach(), gradient_OR))
        for pairs in by_rank.values():
            squares_LRR = torch.stack([A_RI @ A_RI.T for A_RI, _ in pairs])
            squares_LRR.diagonal(dim1=1, dim2=2).add_(_DELTA)
            inverses_LRR = torch.linalg.pinv(squares_LRR, hermitian=True) / self.scaling**2
            for (_, gradient_OR), inverse_RR in zip(pairs, inverses_LRR, strict=True):
                gradient_OR.copy_(gradient_OR @ inverse_RR)
