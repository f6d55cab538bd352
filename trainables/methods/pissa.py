"""PiSSA."""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.methods.started import Started


class Pissa(Started):
    """Starts at the largest R singular values of W0: s B0 A0 = U S V^T, split evenly."""

    name: ClassVar[str] = "pissa"
    title: ClassVar[str] = "PiSSA"
    source: ClassVar[str] = "Meng et al. 2024, 2404.02948"

    def first_factors(self, weight_OI: Any, observed: Any) -> tuple[Any, Any]:
        """U sqrt(S / s) and sqrt(S / s) V^T."""
        import torch

        left_OK, values_K, right_KI = torch.linalg.svd(weight_OI, full_matrices=False)
        root_R = (values_K[: self.rank] / self.scaling).sqrt()
        return left_OK[:, : self.rank] * root_R, root_R[:, None] * right_KI[: self.rank]
