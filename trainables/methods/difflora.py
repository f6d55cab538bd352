"""DiffLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Ratio
from trainables.methods.peft_method import PeftAdapter


class DiffLora(PeftAdapter):
    """(softmax(Q1 K1^T / sqrt D) - lam softmax(Q2 K2^T / sqrt D)) V in the place of attention.

    Q1, K1 are the base's plus s B A; Q2, K2 are s B A alone, of rank R, with s = alpha / R.
    lam = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lam0 in each layer l, lam0 = 0.8 - 0.6 exp(-0.3 l)
    from l = 0; each head's output (D) is normalised by its root mean square, with a trained gain,
    and multiplied by 1 - lam0. As in the code of alexmsrh/difflora (`negative_term_lora_only`,
    `learn_lambda`, `groupnorm`), where B of Q1 and K1 starts at 0 and that of Q2 and K2 at random.

    So the start is not the base, and a strength below 1 is not defined: only lam = 0 without the
    norm is the base. Attention can be negative. Models of the families Llama, Mistral and Qwen2.

    Attributes:
        rank: R of each of four pairs of factors a layer.
        alpha: s = alpha / rank.
        dropout: share of the inputs that is dropped before each A.
        norm: whether the heads are normalised.
    """

    name: ClassVar[str] = "difflora"
    title: ClassVar[str] = "DiffLoRA"
    source: ClassVar[str] = "Misrahi et al. 2025, 2507.23588"
    capacity_field: ClassVar[str | None] = "rank"
    ratios: ClassVar[tuple[Ratio, ...]] = (Ratio("alpha_ratio", "alpha", "rank"),)
    label_fields: ClassVar[tuple[str, ...]] = ("alpha",)
    peft_fields: ClassVar[Mapping[str, str]] = {
        field: field for field in ("rank", "alpha", "dropout", "norm")
    }
    starts_at_base: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    in_peft: ClassVar[bool] = False
    takes_4bit: ClassVar[bool] = True

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=64.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm: bool = True

    @property
    def scale(self) -> float | None:
        """The scaling s."""
        return self.alpha / self.rank

    @property
    def smallest(self) -> Self:
        """Rank and alpha 1."""
        return self.model_copy(update={"rank": 1, "alpha": 1.0})

    @property
    def why_not_scaled(self) -> str | None:
        """Its start is not the base."""
        return f"{self.title} does not start at the base"

    def peft_config(self, steps: int) -> Any:
        """The adapter as PEFT's configuration."""
        from trainables.tuners.difflora_tuner import DiffLoraConfig

        return DiffLoraConfig(task_type="CAUSAL_LM", **self.options(steps))

    def parameters(self, shape: ModelShape) -> int:
        """Factors of two queries and two keys, four vectors of lam, and the gain of the norm."""
        outputs = (shape.heads + shape.kv_heads) * shape.head_size
        factors = 2 * self.rank * (2 * shape.hidden + outputs)
        return shape.layers * (factors + (5 if self.norm else 4) * shape.head_size)

    def misfit(self, shape: ModelShape) -> str | None:
        """Models that normalise queries and keys, such as Qwen3, are refused."""
        if shape.normed_heads:
            return f"{self.title} does not train models that normalise each head's queries and keys"
        return None
