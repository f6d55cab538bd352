"""TRL's trainer with the trial's method and loss, and the loss of the model's own logits.

TRL computes the loss from the last hidden state with a fused output head. It knows some of the
scales and caps that models apply to their logits, but not all, and no layer before the head.

Shapes: B samples of S tokens, T labelled tokens, V words.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from subprocess import SubprocessError
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss
from trl import SFTTrainer

from trainables.data.dataset import IGNORED_LABEL
from trainables.errors import first_line
from trainables.evaluation.evaluator import evaluating
from trainables.evaluation.logits import logits_at
from trainables.losses.base import Loss, Tokens
from trainables.methods import Method
from trainables.models.adapter import without_adapter
from trainables.process.collectives import agreed
from trainables.process.lost_process import is_lost_worker
from trainables.process.out_of_memory import is_out_of_memory
from trainables.storage.disk import is_disk_full

logger = logging.getLogger(__name__)

# Largest difference of log-probabilities, relative to the largest logit.
_ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2}


class Trainer(SFTTrainer):
    """Uses TRL's fused output head only if it computes the model's own logits.

    The loss that it logs is what is trained, without penalties.
    """

    is_fused = True

    def __init__(self, method: Method, loss: Loss, base: Any = None, **arguments: Any) -> None:
        """`base` is the base beside the model, where the loss reads it and it is no adapter's."""
        super().__init__(**arguments)
        self.method, self._trained_loss = method, loss
        self._own_base = None if base is None else base.to(self.args.device)
        self._penalty: torch.Tensor | None = None
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
        """This micro-batch's share of the step's loss in nats/token, and of the penalties."""
        loss = self._loss(model, inputs, num_items_in_batch)
        terms = (
            self.method.penalty(self.model),
            self._trained_loss.penalty(self.model, self._own_base),
        )
        penalties = [term for term in terms if term is not None]
        if not penalties:
            return loss
        share = sum(penalties) / self.current_gradient_accumulation_steps
        self._penalty = share.detach()
        return loss + share

    def _loss(self, model: Any, inputs: dict[str, Any], tokens: Any) -> Any:
        if not self._trained_loss.is_cross_entropy:
            loss = self._sum_of_token_losses(model, inputs) / tokens
        elif self.is_fused:
            return super().compute_loss(model, inputs, num_items_in_batch=tokens)
        else:
            logits_BSV = model(**inputs | {"labels": None, "use_cache": False}).logits.contiguous()
            loss = ForCausalLMLoss(logits_BSV, inputs["labels"], logits_BSV.shape[-1], tokens)
        # The count is of all workers, over which gradients are averaged.
        return loss * self.args.world_size

    def _sum_of_token_losses(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = self._trained_loss
        next_BS = inputs["labels"][:, 1:]
        sequences_T, places_T = (next_BS != IGNORED_LABEL).nonzero(as_tuple=True)
        targets_T = next_BS[sequences_T, places_T]
        if self.is_fused and not (loss.reads_logits or loss.reads_base):
            outputs = model(**inputs | {"use_cache": False}, fused_lm_head=True)
            tokens = Tokens(-outputs.log_probs[outputs.label_mask].float(), targets_T)
        else:
            positions_T = sequences_T * inputs["labels"].shape[1] + places_T
            head = self.model.get_output_embeddings()
            text = {name: value for name, value in inputs.items() if name != "labels"}
            logits_TV = logits_at(model, positions_T, head, **text).float()
            nll_T = cross_entropy(logits_TV, targets_T, reduction="none")
            base_TV = self._base_logits(positions_T, text) if loss.reads_base else None
            tokens = Tokens(nll_T, targets_T, logits_TV, base_TV)
        losses_T = loss.token_losses(tokens)
        return (loss.token_weights(losses_T.detach(), sequences_T) * losses_T).sum()

    def _base_logits(self, positions_T: torch.Tensor, text: dict[str, Any]) -> torch.Tensor:
        own = self._own_base
        alone = without_adapter(self.model) if own is None else nullcontext(own)
        with alone as base, evaluating(base):
            return logits_at(base, positions_T, **text).float()

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """The loss without penalties, after the backward pass of all."""
        self._penalty = None
        loss = super().training_step(*arguments, **named)
        return loss if self._penalty is None else loss - self._penalty

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Transformers' optimizer, with the learning rates of the method."""
        if self.optimizer is None:
            super().create_optimizer(model)
            _set_rates(self.optimizer, model or self.model, self.method.rate)
        return self.optimizer

    def choose_loss(self, model: Any, dtype: str) -> None:
        """Compare both heads on a few tokens, with the model wrapped as in training."""
        is_equal = _fused_head_is_exact(model, self.args.device, _ROUNDING[dtype])
        self.is_fused = agreed(is_equal)
        if not self.is_fused:
            logger.warning(
                "TRL's fused head does not compute the model's logits: the loss uses the model's "
                "own head, which takes more memory"
            )


def _set_rates(optimizer: Any, model: Any, rate_of: Callable[[str], float]) -> None:
    """Put parameters with another learning rate than the trial's into groups of their own.

    The first group keeps the trial's, which is reported, even if it has no parameter left.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rates = {id(parameter): rate_of(name) for name, parameter in trained}
    if set(rates.values()) <= {1.0}:
        return
    for group in list(optimizer.param_groups):
        by_rate = defaultdict(list)
        for parameter in group["params"]:
            by_rate[rates[id(parameter)]].append(parameter)
        group["params"] = by_rate.pop(1.0, [])
        for rate, parameters in sorted(by_rate.items()):
            own = {"params": parameters, "lr": rate * group["lr"]}
            optimizer.add_param_group({**group, **own})


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
