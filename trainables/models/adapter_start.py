"""Where fresh adapters start, for methods that compute it from the base or from samples.

Shapes: S tokens of a sample, T of them with inputs, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from trainables.methods.base import Method, Seen
from trainables.models.four_bit import plain_weight

_MOST_BYTES = 2 * 2**30  # of what is observed at once, in fp32

Samples = Sequence[Mapping[str, Any]]
"""Token ids and labels of samples, one after another."""


def start_layers(
    base: Callable[[], AbstractContextManager[Any]],
    layers: Sequence[tuple[Any, Any]],
    method: Method,
    samples: Samples | None,
) -> None:
    """Put fresh adapters where the method has them start.

    Args:
        base: gives a model that computes as the base alone does.
        layers: each of PEFT's, and the base's linear layer under it.
        method: may compute the start from samples; without any, its layers stay as PEFT has them.
        samples: short enough for the model.
    """
    if method.starts_from is None:
        for layer, linear in layers:
            method.start_layer(layer, partial(_weight, linear), None)
    elif samples is not None:
        for some in _groups(layers):
            with base() as model:
                means = _observed(model, [linear for _, linear in some], method, samples)
            for (layer, linear), mean in zip(some, means, strict=True):
                method.start_layer(layer, partial(_weight, linear), mean)


def _groups(layers: Sequence[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
    """The layers in groups of which all observations fit into memory at once."""
    some: list[tuple[Any, Any]] = []
    room = _MOST_BYTES
    for layer, linear in layers:
        outputs, inputs = _weight(linear).shape
        size = 4 * max(outputs, inputs) * inputs
        if some and size > room:
            yield some
            some, room = [], _MOST_BYTES
        some.append((layer, linear))
        room -= size
    yield some


def _observed(model: Any, linears: Sequence[Any], method: Method, samples: Samples) -> list[Any]:
    """The mean over samples of what the method observes of each layer."""
    sums: list[Any] = [0.0] * len(linears)
    for sample in samples:
        is_learned_S = torch.tensor(sample["labels"], device=model.device) >= 0
        passed = _passed(model, linears, sample, method.reads_gradients)
        for number, (inputs_TI, gradients_TO) in enumerate(passed):
            seen = Seen(inputs_TI.float(), is_learned_S, gradients_TO)
            sums[number] = sums[number] + method.observe(seen)
    return [total / len(samples) for total in sums]


def _passed(
    model: Any, linears: Sequence[Any], sample: Mapping[str, Any], with_gradients: bool
) -> list[tuple[Any, Any]]:
    """Each layer's inputs, and if asked for the gradients by its outputs, for one sample."""
    ids_1S, labels_1S = (
        torch.tensor([sample[name]], device=model.device) for name in ("input_ids", "labels")
    )
    with _noting(linears) as (inputs, outputs), _evaluating(model):
        if not with_gradients:
            with torch.no_grad():
                model(input_ids=ids_1S, use_cache=False)
            return [(inputs[linear], None) for linear in linears]
        with torch.enable_grad():
            loss = model(input_ids=ids_1S, labels=labels_1S, use_cache=False).loss
        gradients = torch.autograd.grad(loss, [outputs[linear] for linear in linears])
    found = zip(linears, gradients, strict=True)
    return [(inputs[linear], gradient_1SO[0].float()) for linear, gradient_1SO in found]


@contextmanager
def _noting(linears: Sequence[Any]) -> Iterator[tuple[dict[Any, Any], dict[Any, Any]]]:
    """Note inputs (S, I) and outputs (1, S, O) of layers, which gradients then reach."""
    inputs: dict[Any, Any] = {}
    outputs: dict[Any, Any] = {}

    def note(linear: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        inputs[linear] = arguments[0].detach()[0]
        if torch.is_grad_enabled() and not output.requires_grad:  # of a frozen base
            output = output.detach().requires_grad_()
        outputs[linear] = output
        return output

    hooks = [linear.register_forward_hook(note) for linear in linears]
    try:
        yield inputs, outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout while the context lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _weight(linear: Any) -> Any:
    """A linear layer's weight (O, I)."""
    weight = plain_weight(linear)
    return weight.T if isinstance(linear, Conv1D) else weight
