"""A trained model at other strengths: base + strength x update, evaluated without more training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from trainables.config import TrialConfig
from trainables.methods import Method
from trainables.process.collectives import from_each
from trainables.training.measuring import Measuring
from trainables.training.reporter import Reporter, StopTrial

Tensors = dict[str, torch.Tensor]


def starting_values(trial: TrialConfig, model: Any) -> Tensors:
    """What the trial's strengths are counted from, by name, on the CPU; call it before training.

    Empty where the method needs none, or no other strength is evaluated.
    """
    if not trial.strengths or not trial.method.needs_start:
        return {}
    return {name: _own_part(p).to("cpu", copy=True) for name, p in _trained(model).items()}


def evaluate_strengths(
    trial: TrialConfig, model: Any, start: Tensors, measuring: Measuring, reporter: Reporter
) -> None:
    """Evaluate and report a trained model at the trial's strengths; it is left as trained.

    Every worker calls it. `start` is of `starting_values`.

    Raises:
        StopTrial: the reporter asked for it; the rest follows in the next attempt.
        EvaluationFailed: an evaluation raised an error.
    """
    for strength in trial.strengths:
        if any(from_each(reporter.stop_requested())):
            raise StopTrial
        with at_strength(trial.method, model, start, strength):
            measuring.evaluate_at(strength)


@contextmanager
def at_strength(
    method: Method, model: Any, start: Mapping[str, torch.Tensor], strength: float
) -> Iterator[None]:
    """The model at this strength while the context lasts; bit by bit as before after it.

    Under ZeRO-3 each worker changes its own part of each parameter, as is right for full
    fine-tuning alone, whose strengths are interpolated number by number.
    """
    kept: Tensors = {}
    try:
        with torch.no_grad():
            for name, values in _scaled(method, model, start, strength):
                part = _own_part(_trained(model)[name])
                kept[name] = part.to("cpu", copy=True)
                part.copy_(values)
        yield
    finally:
        for name, values in kept.items():
            _own_part(_trained(model)[name]).copy_(values)


def _scaled(
    method: Method, model: Any, start: Mapping[str, torch.Tensor], strength: float
) -> Iterator[tuple[str, torch.Tensor]]:
    trained = {name: _own_part(p) for name, p in _trained(model).items()}
    if method.changes_base:  # one at a time: it is as large as the model
        for name, part in trained.items():
            first = {name: start[name].to(part.device)}
            yield from method.at_strength({name: part}, first, strength).items()
    else:
        first = {name: values.to(trained[name].device) for name, values in start.items()}
        yield from method.at_strength(trained, first, strength).items()


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _own_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The parameter's values, or what this worker holds of them under ZeRO-3."""
    part: torch.Tensor = getattr(parameter, "ds_tensor", parameter).data
    return part
