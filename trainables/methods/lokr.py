"""LoKr."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Scaled


class LoKr(Scaled):
    """W0 + s kron(C, B A), whose rank is up to R times that of C.

    From half the larger dimension of B A on, the rank makes no difference: it is one matrix.

    Attributes:
        factor: of the outputs and inputs that C has; where it does not divide them, the next
            smaller one that does. By default the factor next to the root.
    """

    name: ClassVar[str] = "lokr"
    title: ClassVar[str] = "LoKr"
    source: ClassVar[str] = "Yeh et al. 2023 (LyCORIS), 2309.14859"
    peft_class: ClassVar[str] = "LoKrConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "alpha",
        "factor": "decompose_factor",
    }
    scaled: ClassVar[tuple[str, ...]] = ("lokr_w1",)

    factor: int = Field(default=-1, ge=-1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """Those of C, and R (O + I) for the rest of the outputs and inputs, or a whole matrix."""
        (rows, rest_O), (columns, rest_I) = self._split(outputs), self._split(inputs)
        is_whole = self.rank >= max(rest_O, rest_I) / 2
        rest = rest_O * rest_I if is_whole else self.rank * (rest_O + rest_I)
        return rows * columns + rest

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and the update."""
        return Footprint(matrices=outputs * inputs, brief=3 * outputs * inputs)

    def _split(self, size: int) -> tuple[int, int]:
        """A size as two factors, the first of which is C's."""
        if self.factor > 0 and size % self.factor == 0:
            return self.factor, size // self.factor
        largest = math.isqrt(size) if self.factor == -1 else min(self.factor, math.isqrt(size))
        first = max(n for n in range(1, max(largest, 1) + 1) if size % n == 0)
        return first, size // first
