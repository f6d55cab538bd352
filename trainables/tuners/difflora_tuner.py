"""Differential attention of low rank: two attention maps, the second subtracted from the first.

Shapes: B sequences, T tokens, H the model's dimension, N heads of queries, M of keys and values,
D of one head, R rank, S tokens that are attended to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from trainables.compat.peft import Tuner, TunerConfig, TunerLayer, register_tuner
from trainables.compat.transformers import attention_kind

_TAKEN = (LlamaAttention, MistralAttention, Qwen2Attention)
_MAPS = ("q1", "k1", "q2", "k2")
_NORM_EPSILON = 1e-5


def initial_lambda(layer: int) -> float:
    """The part of lam that is not trained: 0.8 - 0.6 exp(-0.3 l), l from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


@dataclass
class DiffLoraConfig(TunerConfig):
    """Settings.

    Attributes:
        rank: R of each of the four low-rank maps.
        alpha: their scaling is alpha / rank.
        dropout: share of the inputs that is dropped before each.
        norm: whether the heads are normalised.
    """

    rank: int = 32
    alpha: float = 64.0
    dropout: float = 0.0
    norm: bool = True

    def __post_init__(self) -> None:
        """With its type, on attention unless other modules are given."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self.target_modules = self.target_modules or {"self_attn"}


class DiffLoraLayer(TunerLayer):
    """(softmax(Q1 K1^T / sqrt D) - lam softmax(Q2 K2^T / sqrt D)) V, and the base's output matrix.

    With s = alpha / R, for queries and likewise for keys:

        Q1 = W_q x + s B_q1 A_q1 x,    Q2 = s B_q2 A_q2 x
        lam = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lam0

    Both pairs are rotated by their positions as the base's are. With `norm` each head's output is
    divided by its root mean square over D and multiplied by g (1 - lam0).

    Per adapter: `difflora_A_*` (R, H), `difflora_B_q*` (N D, R), `difflora_B_k*` (M D, R),
    `difflora_lambda` (4, D): l_q1, l_k1, l_q2, l_k2, and `difflora_norm` (D): g. B_q1 and B_k1
    start at 0; B_q2 and B_k2 do not, as each would take no gradient where the other is 0.

    Attributes:
        lambda_0: lam0.
    """

    adapter_layer_names: tuple[str, ...] = (
        *(f"difflora_{factor}_{name}" for name in _MAPS for factor in "AB"),
        "difflora_lambda",
        "difflora_norm",
    )

    def __init__(self, base_layer: Any) -> None:
        super().__init__(base_layer)
        for name in self.adapter_layer_names[:-2]:
            setattr(self, name, torch.nn.ModuleDict())
        self.difflora_lambda = torch.nn.ParameterDict()
        self.difflora_norm = torch.nn.ParameterDict()
        self.configs: dict[str, DiffLoraConfig] = {}
        self.lambda_0 = initial_lambda(base_layer.layer_idx)

    def update_layer(self, adapter_name: str, config: DiffLoraConfig) -> None:
        """Add a fresh adapter of that name."""
        attention = self.get_base_layer()
        for name in _MAPS:
            linear = attention.q_proj if name.startswith("q") else attention.k_proj
            A = torch.nn.Linear(linear.in_features, config.rank, bias=False)
            B = torch.nn.Linear(config.rank, linear.out_features, bias=False)
            if name.endswith("1"):
                torch.nn.init.zeros_(B.weight)
            getattr(self, f"difflora_A_{name}")[adapter_name] = A
            getattr(self, f"difflora_B_{name}")[adapter_name] = B
        size = attention.head_dim
        self.difflora_lambda[adapter_name] = torch.nn.Parameter(0.1 * torch.randn(4, size))
        if config.norm:
            self.difflora_norm[adapter_name] = torch.nn.Parameter(torch.ones(size))
        self.configs[adapter_name] = config
        self.place(adapter_name, config)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What attention gives (B, T, H), and (B, N, T, S) where the base does: may be negative.

        Raises:
            ValueError: several adapters are active.
        """
        names = self.used_adapters(self.configs)
        if not names:
            return self.base_layer(hidden_states, *args, **kwargs)
        if len(names) > 1:
            raise ValueError("attention is of one adapter at a time")
        return self._attend(names[0], hidden_states, *args, **kwargs)

    def lam(self, name: str) -> torch.Tensor:
        """The factor of the second map, a scalar in fp32."""
        q1, k1, q2, k2 = self.difflora_lambda[name].float()
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lambda_0

    def _attend(
        self,
        name: str,
        x_BTH: torch.Tensor,
        position_embeddings: Any,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        attention = self.get_base_layer()
        keys = ("cache", "past_key_values")  # the latter up to Transformers 5.24
        cache = next(
            filter(lambda each: each is not None, map(kwargs.pop, keys, (None,) * 2)), None
        )
        added = {each: self._low_rank(name, each, x_BTH) for each in _MAPS}
        of_base = {"q1": attention.q_proj(x_BTH), "k1": attention.k_proj(x_BTH)}
        heads = {
            each: self._heads(added[each] + of_base[each] if each in of_base else added[each])
            for each in _MAPS
        }
        values_BMSD = self._heads(attention.v_proj(x_BTH))
        first, second = (
            apply_rotary_pos_emb(heads[f"q{n}"], heads[f"k{n}"], *position_embeddings)
            for n in (1, 2)
        )
        keys_BMSD = (first[1], second[1])
        if cache is not None:  # both keys side by side, so that it stays one entry a layer
            both = torch.cat(keys_BMSD, dim=-1)
            both, values_BMSD = cache.update(both, values_BMSD, attention.layer_idx)
            keys_BMSD = both.chunk(2, dim=-1)
        queries = (first[0], second[0])
        maps = [
            self._one_map(query_BNTD, key_BMSD, values_BMSD, attention_mask, **kwargs)
            for query_BNTD, key_BMSD in zip(queries, keys_BMSD, strict=True)
        ]
        return self._subtracted(name, *maps)

    def _low_rank(self, name: str, which: str, x_BTH: torch.Tensor) -> torch.Tensor:
        """S B A x in the dtype of x."""
        A, B = (getattr(self, f"difflora_{factor}_{which}")[name] for factor in "AB")
        config = self.configs[name]
        inputs = torch.nn.functional.dropout(
            x_BTH.to(A.weight.dtype), config.dropout, self.training
        )
        added: torch.Tensor = B(A(inputs)) * (config.alpha / config.rank)
        return added.to(x_BTH.dtype)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, heads D) as (B, heads, T, D)."""
        size = self.get_base_layer().head_dim
        return states.unflatten(-1, (-1, size)).transpose(1, 2)

    def _one_map(
        self, queries: torch.Tensor, keys: torch.Tensor, values: Any, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What one softmax gives (B, T, N, D), and itself (B, N, T, S) under eager attention."""
        attention = self.get_base_layer()
        if not isinstance(attention, LlamaAttention):
            window = getattr(attention.config, "sliding_window", None)
            kwargs["sliding_window"] = getattr(attention, "sliding_window", window)
        compute = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention_kind(attention.config), eager_attention_forward
        )
        dropout = attention.attention_dropout if self.training else 0.0
        scaling = attention.scaling
        found: tuple[torch.Tensor, torch.Tensor | None] = compute(
            attention, queries, keys, values, mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found

    def _subtracted(self, name: str, first: Any, second: Any) -> Any:
        """The first map less lam times the second, normalised, through the output matrix."""
        lam = self.lam(name)
        heads_BTND = first[0].float() - lam * second[0].float()
        if self.configs[name].norm:
            weight_D = self.difflora_norm[name].float()
            heads_BTND = torch.nn.functional.rms_norm(
                heads_BTND, weight_D.shape, weight_D, _NORM_EPSILON
            )
            heads_BTND = heads_BTND * (1 - self.lambda_0)
        output = self.get_base_layer().o_proj(heads_BTND.flatten(-2).to(first[0].dtype))
        if first[1] is None:
            return output, None
        return output, first[1] - lam.to(first[1].dtype) * second[1]


class DiffLoraModel(Tuner):
    """A base with differential attention."""

    prefix: str = "difflora_"
    tuner_layer_cls = DiffLoraLayer

    def check_target(self, target: Any) -> None:
        """Raises ValueError: the module is not attention as Llama has it."""
        if not isinstance(target, (*_TAKEN, DiffLoraLayer)):
            names = ", ".join(each.__name__ for each in _TAKEN)
            raise ValueError(f"it is on the attention of {names}, not of {type(target).__name__}")


PEFT_TYPE = register_tuner("differential_lora", DiffLoraConfig, DiffLoraModel)
