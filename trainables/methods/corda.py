"""CorDA, knowledge-preserving."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from trainables.methods.base import Seen
from trainables.methods.started import Started

_DAMPING, _MOST_ERROR = 0.01, 0.05  # PEFT's


class CorDa(Started):
    """Starts where W0 does least on general text: s B0 A0 = U S V^T C^-1 of W0 C = U S V^T.

    C is the mean of x^T x over texts of `eval.general_text`, each with its inputs x as a share of
    its largest number; U S V^T has the smallest R singular values. Its diagonal is raised by 1 % of
    its mean, doubled until C can be inverted.
    """

    name: ClassVar[str] = "corda"
    title: ClassVar[str] = "CorDA"
    source: ClassVar[str] = "Yang et al. 2024, 2406.05223"
    starts_from: ClassVar[Literal["general_text", "data"] | None] = "general_text"

    def observe(self, seen: Seen) -> Any:
        """X^T x (I, I), with x as a share of its largest number."""
        x_TI = seen.inputs_TI / seen.inputs_TI.max().abs()
        return x_TI.T @ x_TI

    def first_factors(self, weight_OI: Any, observed: Any) -> tuple[Any, Any]:
        """U sqrt(S / s) and sqrt(S / s) V^T C^-1."""
        import torch

        context_II, inverse_II = _invertible(observed)
        left_OK, values_K, right_KI = torch.linalg.svd(weight_OI @ context_II, full_matrices=False)
        root_R = (values_K[-self.rank :] / self.scaling).sqrt()
        smallest_RI = right_KI[-self.rank :] @ inverse_II
        return left_OK[:, -self.rank :] * root_R, root_R[:, None] * smallest_RI


def _invertible(context_II: Any) -> tuple[Any, Any]:
    """The matrix with its diagonal raised, and the inverse of that."""
    import torch

    identity_II = torch.eye(len(context_II), device=context_II.device)
    raised = _DAMPING * context_II.diagonal().mean()
    while True:
        damped_II = context_II + raised * identity_II
        inverse_II = torch.linalg.inv(damped_II)
        if torch.dist(damped_II @ inverse_II, identity_II) < _MOST_ERROR:
            return damped_II, inverse_II
        raised = 2 * raised
