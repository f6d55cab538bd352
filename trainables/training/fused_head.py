"""Whether TRL trains on the loss of the model that is evaluated.

TRL computes the loss from the last hidden state with a fused output head, which knows some of what
models do to their logits, by the names of options, but no cap or scale of another name.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer import utils

from trainables.errors import TrialError
from trainables.evaluation.evaluator import evaluating

# Largest difference of log-probabilities, relative to the largest logit.
_ROUNDING = 5e-2


class FusedHeadCheck(TrainerCallback):
    """Ends a trial at its beginning if its training loss would be of another function."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare on a few tokens, by running the model.

        Raises:
            TrialError: the losses differ.
        """
        if not hasattr(utils, "add_fused_lm_head"):  # other versions of TRL use the model's logits
            return
        model = kwargs["model"]
        ids_1S = torch.arange(8, device=args.device)[None]
        inputs = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S)}
        with evaluating(model):
            fused = model(**inputs, labels=ids_1S, fused_lm_head=True).log_probs.float()
            logits_1SV = model(**inputs, use_cache=False).logits.float()
        own = logits_1SV.log_softmax(-1)[:, :-1].gather(-1, ids_1S[:, 1:, None])[..., 0]
        if (own - fused).abs().max() > _ROUNDING * logits_1SV.abs().max():
            raise TrialError(
                f"TRL's loss is not the model's: {-fused.mean():.4f} and {-own.mean():.4f} "
                "nats/token. The model caps or scales its logits in a way that TRL does not know; "
                "train LoRA in slots (resources.lora.slots), or take another model"
            )
