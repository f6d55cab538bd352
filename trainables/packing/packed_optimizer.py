"""AdamW over a flat adapter: torch's own, which checkpoints see tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from trainables.packing.adapters import Adapter
from trainables.training.optimizer_state import step_counter

# Over the whole vector at once fp32 loses digits on a CPU; tensor by tensor, as the reference does,
# takes as long as the rest of the step. A GPU sums as a tree.
_PIECES = {"cpu": 1 << 16, "cuda": 1 << 24}


class FlatAdamW:
    """The optimizer that Transformers' trainer would make, over one vector of parameters.

    AdamW works element by element, so the vector takes exactly the steps its parts would take.

    Args:
        rate_of: a parameter's learning rate as a multiple of the trial's, by PEFT's name.

    Attributes:
        inner: the optimizer itself.
        state: moments by parameter of `adapter.tensors`, as views: writing to them in place
            changes the optimizer.
    """

    def __init__(
        self, adapter: Adapter, arguments: TrainingArguments, rate_of: Callable[[str], float]
    ) -> None:
        self._flat_P = adapter.flat_P
        rates = {name: rate_of(name) for name in adapter.tensors}
        self._rates_P = _spread(rates, adapter)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        decay, base_rate = arguments.weight_decay, arguments.learning_rate
        # The second group holds parameters without weight decay, such as biases, and those after it
        # have other learning rates: none, since the vector is one parameter.
        others = sorted(set(rates.values()) - {1.0})
        groups: list[dict[str, Any]] = [
            {"params": [self._flat_P], "weight_decay": decay},
            {"params": [], "weight_decay": 0.0},
            *({"params": [], "weight_decay": decay, "lr": rate * base_rate} for rate in others),
        ]
        self.inner = kind(groups, **options)
        moments = {name: torch.zeros_like(self._flat_P.data) for name in ("exp_avg", "exp_avg_sq")}
        step = step_counter(self.inner, self._flat_P)
        self.inner.state[self._flat_P] = {"step": step, **moments}
        views = {name: adapter.views(moment) for name, moment in moments.items()}
        self.state = {
            parameter: {"step": step, **{moment: views[moment][name] for moment in moments}}
            for name, parameter in adapter.tensors.items()
        }

    def step(self) -> None:
        """Update the parameters.

        AdamW's change of a parameter, decay included, is proportional to its learning rate.
        """
        if self._rates_P is None:
            self.inner.step()
            return
        before_P = self._flat_P.detach().clone()
        self.inner.step()
        torch.lerp(before_P, self._flat_P.data, self._rates_P, out=self._flat_P.data)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups, as of any torch optimizer."""
        return list(self.inner.param_groups)

    def clip(self, max_norm: float) -> torch.Tensor:
        """Clip the gradient to `max_norm` (0: never); returns its norm before, on its device."""
        assert self._flat_P.grad is not None  # noqa: S101 - it has one from the beginning
        piece = _PIECES[self._flat_P.device.type]
        norm = torch.nn.utils.get_total_norm(self._flat_P.grad.split(piece))
        if max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._flat_P, max_norm, norm)
        return norm

    def zero_grad(self) -> None:
        """Zero the gradient in place, as it is a row of its group's matrix."""
        self.inner.zero_grad(set_to_none=False)


def _spread(rates: Mapping[str, float], adapter: Adapter) -> torch.Tensor | None:
    """The rate of each element (P,), 0 of what is not trained; None if all are 1."""
    if set(rates.values()) <= {1.0} and adapter.layout.trained is None:
        return None
    rates_P = torch.empty_like(adapter.flat_P.data)
    for name, view in adapter.views(rates_P).items():
        view.fill_(rates[name])
    for part in adapter.frozen(rates_P):
        part.zero_()
    return rates_P
