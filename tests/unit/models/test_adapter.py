"""Where PEFT fails, a base is left as it was: it is shared by the trials that follow."""

from __future__ import annotations

import peft
import pytest
import torch
from tiny_decoder import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel

from trainables.config import LoraConfig
from trainables.models.lora_adapter import adapt, peft_config

LORA = LoraConfig(rank=2, alpha=4, target_modules=("q_proj", "v_proj"))


class WithoutGeneration(LlamaPreTrainedModel):
    """As models on a hub whose own code is older than Transformers'."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)


@pytest.mark.parametrize(
    ("kind", "modules", "failure"),
    [
        # In the midst of the layers; and once all are adapted, and the rest is frozen.
        (LlamaForCausalLM, ("q_proj", "input_layernorm"), "LlamaRMSNorm.* is not supported"),
        (WithoutGeneration, LORA.target_modules, "no attribute 'prepare_inputs_for_generation'"),
    ],
)
def test_a_base_that_peft_fails_on_is_left_as_it_was(
    kind: type[LlamaPreTrainedModel], modules: tuple[str, ...], failure: str
) -> None:
    base = kind(LlamaConfig(vocab_size=32, **SHAPE))
    lora = LORA.model_copy(update={"target_modules": modules})
    layers, attributes = [*base.named_modules()], dict(vars(base))
    with pytest.raises((ValueError, AttributeError), match=failure):
        adapt(base, lora)
    assert [*base.named_modules()] == layers  # the very same
    assert vars(base) == attributes
    assert all(parameter.requires_grad for parameter in base.parameters())

    with pytest.raises((ValueError, AttributeError), match=failure):  # it does leave something
        peft.get_peft_model(base, peft_config(lora))
    assert [*base.named_modules()] != layers
