"""Batched adapters against a plain loop over trials, and the distribution of their dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from trainables.methods.base import LowRankLayout
from trainables.packing.adapters import AdaptedLayers, Adapter, AdapterGroup, Part, lay_out
from trainables.packing.packed_batch import Batch
from trainables.packing.packed_dropout import Masks

if TYPE_CHECKING:
    from trainables.packing.adapters import Target

# Trials in two groups; the third one and the last share a pass with different numbers of rows.
TRIALS = [
    LowRankLayout(rank=2, scaling=2.0, dropout=0.5),
    LowRankLayout(rank=2, scaling=1.0),
    LowRankLayout(rank=2, scaling=0.5, dropout=0.25),
    LowRankLayout(rank=5, scaling=3.6),
]
ROWS, LENGTHS, INPUTS = [2, 2, 2, 1], [3, 4, 4, 2], 6


class Kept(Masks):
    """Masks that the test can read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.drawn: list[torch.Tensor] = []

    def draw(self, x_NSI: torch.Tensor) -> torch.Tensor | None:
        kept_NSI = super().draw(x_NSI)
        assert kept_NSI is not None
        self.drawn.append(kept_NSI)
        return kept_NSI


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 7), nn.Tanh(), nn.Linear(7, 3, bias=False))
    return model.requires_grad_(False)


def targets(model: nn.Module) -> list[Target]:
    return lay_out([(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)])


def new_adapter(layout: LowRankLayout, model: nn.Module) -> Adapter:
    places = targets(model)
    size = layout.rank * sum(t.module.in_features + t.module.out_features for t in places)
    return Adapter(layout, places, 0.3 * torch.randn(size))


def batch(rows: list[int], lengths: list[int]) -> Batch:
    samples = [
        [{"input_ids": [1] * length, "labels": [1] * length}] * count
        for count, length in zip(rows, lengths, strict=True)
    ]
    return Batch.of(samples, [1] * len(rows), torch.device("cpu"))


def generators(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_outputs_and_gradients_are_those_of_a_loop_over_trials() -> None:
    model = network()
    adapters = [new_adapter(layout, model) for layout in TRIALS]
    groups = [AdapterGroup(adapters[:3], torch.float32), AdapterGroup(adapters[3:], torch.float32)]
    # The second trial alone, then the third: parts of a group need not begin at its first adapter.
    parts = [Part(groups[0], 0, 1, 2), Part(groups[0], 1, 3, 2), Part(groups[1], 0, 1, 1)]
    rates = [layout.dropout for layout in TRIALS]
    masks = Kept(rates, generators(range(4)), batch(ROWS, LENGTHS))
    x_NSI = torch.randn(sum(ROWS), max(LENGTHS), INPUTS, requires_grad=True)
    weight_NSO = torch.randn(sum(ROWS), max(LENGTHS), 3)
    layers = AdaptedLayers(targets(model))
    with layers.routed(parts, masks):
        y_NSO = model(x_NSI)
        (y_NSO * weight_NSO).sum().backward()
    first_row = 0
    for adapter, layout, rows in zip(adapters, TRIALS, ROWS, strict=True):
        own = slice(first_row, first_row + rows)
        first_row += rows
        tensors = {n: t.detach().clone().requires_grad_() for n, t in adapter.tensors.items()}
        x = x_NSI[own].detach().clone().requires_grad_()
        h = x
        for layer, kept in zip((0, 2), masks.drawn, strict=True):
            names = [f"base_model.model.{layer}.lora_{matrix}.default.weight" for matrix in "AB"]
            A, B = (tensors[name] for name in names)
            dropped = h * kept[own] / (1 - layout.dropout)
            h = model[layer](h) + layout.scaling * dropped @ A.T @ B.T
            h = torch.tanh(h) if layer == 0 else h
        torch.testing.assert_close(y_NSO[own], h)
        (h * weight_NSO[own]).sum().backward()
        torch.testing.assert_close(x_NSI.grad[own], x.grad)
        for name, gradient in adapter.views(adapter.flat_P.grad).items():
            torch.testing.assert_close(gradient, tensors[name].grad)


def test_dropout_keeps_each_trials_share_whoever_shares_the_pass() -> None:
    x_NSI = torch.empty(3, 40, 500)
    masks = Masks([0.1, 0.5, 0.0], generators(range(3)), batch([1, 1, 1], [40, 30, 40]))
    kept_NSI = masks.draw(x_NSI)
    assert kept_NSI is not None
    assert kept_NSI[0].float().mean() == pytest.approx(0.9, abs=0.01)
    assert kept_NSI[1, :30].float().mean() == pytest.approx(0.5, abs=0.01)
    assert kept_NSI[2].all()
    beside = Masks([0.5], generators(range(1, 2)), batch([1], [30])).draw(x_NSI[:1, :30])
    assert beside is not None
    assert torch.equal(beside[0], kept_NSI[1, :30])
    none = Masks([0.0], generators(range(1)), batch([1], [40]))
    assert none.draw(x_NSI) is None
