"""The loss that is trained on: that of the model that is evaluated.

TRL computes the loss from the last hidden state with a fused output head, which knows some of what
models do to their logits, by the names of options, but no cap or scale of another name, and no
layer between that state and the head.
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
    """TRL's trainer, with the loss of the model's own logits where TRL's would be another."""

    is_fused = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Transformers gives no count of a step's tokens for models that do not take it, such as
        # Gemma 4, which have no need to: both losses here divide by it themselves. Without it a
        # step's loss would be the mean of its micro-batches' means, whatever their sizes.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The cross-entropy in nats/token over all micro-batches of a step, this one's share."""
        if self.is_fused:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logits = model(**inputs | {"labels": None, "use_cache": False}).logits.contiguous()
        loss = ForCausalLMLoss(logits, inputs["labels"], logits.shape[-1], num_items_in_batch)
        # These are the tokens of all workers, over which gradients are averaged.
        return loss * self.args.world_size

    def choose_loss(self, model: Any, dtype: str) -> None:
        """Compare both on a few tokens, by running the untrained model, wrapped as it trains."""
        is_equal = _is_of_own_logits(model, self.args.device, _ROUNDING[dtype])
        self.is_fused = agreed(is_equal)
        if not self.is_fused:
            logger.warning(
                "TRL's fused head computes other logits than the model: the loss is of the "
                "model's own, which take more memory, as a micro-batch's are held at once"
            )


def _is_of_own_logits(model: Any, device: torch.device, rounding: float) -> bool:
    ids_1S = torch.arange(8, device=device)[None]
    inputs = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S)}
    with evaluating(model):
        try:
            fused = model(**inputs, labels=ids_1S, fused_lm_head=True).log_probs.float()
        except (AttributeError, RuntimeError, OSError, SubprocessError) as error:
            if is_out_of_memory(error) or is_lost_worker(error) or is_disk_full(error):
                raise
            # The head is of another width than the layers, or Triton finds no C compiler, no
            # headers of Python's, or no cache that it may write to.
            logger.warning("TRL's fused head fails: %s", first_line(error))
            return False
        logits_1SV = model(**inputs, use_cache=False).logits.float()
    own = logits_1SV.log_softmax(-1)[:, :-1].gather(-1, ids_1S[:, 1:, None])[..., 0]
    return bool((own - fused).abs().max() <= rounding * logits_1SV.abs().max())
