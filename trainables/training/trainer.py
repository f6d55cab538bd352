"""TRL's trainer with the loss of the model's own logits.

TRL computes the loss from the last hidden state with a fused output head. It knows some of the
scales and caps that models apply to their logits, but not all, and no layer before the head.
"""

from __future__ import annotations

import logging
from subprocess import SubprocessError
from typing import Any

import torch
from transformers.loss.loss_utils import ForCausalLMLoss
from trl import SFTTrainer

from trainables.errors import first_line
from trainables.evaluation.evaluator import evaluating
from trainables.process.collectives import agreed
from trainables.process.lost_process import is_lost_worker
from trainables.process.out_of_memory import is_out_of_memory
from trainables.storage.disk import is_disk_full

logger = logging.getLogger(__name__)

# Largest difference of log-probabilities, relative to the largest logit.
_ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2}


class Trainer(SFTTrainer):
    """Uses TRL's fused output head only if it computes the model's own logits."""

    is_fused = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Otherwise Transformers gives no count of a step's tokens for models that do not take it,
        # such as Gemma 4, and the loss would be the mean of the micro-batches' means.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the step's cross-entropy, in nats/token."""
        if self.is_fused:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logits = model(**inputs | {"labels": None, "use_cache": False}).logits.contiguous()
        loss = ForCausalLMLoss(logits, inputs["labels"], logits.shape[-1], num_items_in_batch)
        # The count is of all workers, over which gradients are averaged.
        return loss * self.args.world_size

    def choose_loss(self, model: Any, dtype: str) -> None:
        """Compare both heads on a few tokens, with the model wrapped as in training."""
        is_equal = _fused_head_is_exact(model, self.args.device, _ROUNDING[dtype])
        self.is_fused = agreed(is_equal)
        if not self.is_fused:
            logger.warning(
                "TRL's fused head does not compute the model's logits: the loss uses the model's "
                "own head, which takes more memory"
            )


def _fused_head_is_exact(model: Any, device: torch.device, rounding: float) -> bool:
    ids_1S = torch.arange(8, device=device)[None]
    inputs = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S)}
    with evaluating(model):
        try:
            fused = model(**inputs, labels=ids_1S, fused_lm_head=True).log_probs.float()
        except (AttributeError, RuntimeError, OSError, SubprocessError) as error:
            if is_out_of_memory(error) or is_lost_worker(error) or is_disk_full(error):
                raise
            # The head has another width than the layers, or Triton finds no C compiler, no headers
            # of Python, or no writable cache.
            logger.warning("TRL's fused head fails: %s", first_line(error))
            return False
        logits_1SV = model(**inputs, use_cache=False).logits.float()
    own = logits_1SV.log_softmax(-1)[:, :-1].gather(-1, ids_1S[:, 1:, None])[..., 0]
    return bool((own - fused).abs().max() <= rounding * logits_1SV.abs().max())
