"""LoRA adapters of several trials on one frozen base, in one forward and backward pass.

Trials of equal rank share one matrix, one row per trial, so their products are batched without
padding or copies. Gradients are written directly into a matrix of the same shape, because row i
of a layer's input meets only its own trial's parameters.

B and the activations between A and B are stored transposed: a small rank is then always the
number of rows of a product, never of columns, which is much faster in CPU libraries (MKL, rank 8:
up to four times).

Shapes: G trials in a group, P parameters of one adapter, N sequences, S positions, T tokens of a
trial, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from trainables.config import LoraConfig


@dataclass(frozen=True)
class Target:
    """An adapted linear layer of the base; `start` is its offset in units of the rank."""

    name: str
    module: torch.nn.Linear
    start: int

    def split(self, flat_P: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Split flat adapters into A and transposed B: (..., P) to (..., r, I) and (..., r, O)."""
        sizes = [rank * self.module.in_features, rank * self.module.out_features]
        own_P = flat_P.narrow(-1, rank * self.start, sum(sizes))
        A, B_T = own_P.split(sizes, -1)
        return A.unflatten(-1, (rank, -1)), B_T.unflatten(-1, (rank, -1))


def lay_out(named: Sequence[tuple[str, torch.nn.Linear]]) -> list[Target]:
    """Place the adapted layers one after another in a flat adapter."""
    targets = []
    start = 0
    for name, module in named:
        targets.append(Target(name, module, start))
        start += module.in_features + module.out_features
    return targets


class Adapter:
    """One trial's adapter: a flat fp32 vector with views of its tensors under PEFT's names.

    Args:
        lora: rank, scaling and dropout.
        targets: the layers it adapts.
        rows: sequences per micro-batch.
        values_P: its parameters.

    Attributes:
        flat_P: its parameters; `grad` accumulates the gradient of the losses so far.
        tensors: views of `flat_P` by PEFT's parameter names.
        gradients: views of the gradient by the same names.
    """

    def __init__(
        self, lora: LoraConfig, targets: Sequence[Target], rows: int, values_P: torch.Tensor
    ) -> None:
        self.rank, self.scaling, self.dropout = lora.rank, lora.scaling, lora.dropout
        self.rows = rows
        self.targets = targets
        self.flat_P = torch.nn.Parameter(values_P)
        self.flat_P.grad = torch.zeros_like(values_P)
        self.gradients = self.views(self.flat_P.grad)
        self.tensors = {
            name: torch.nn.Parameter(view) for name, view in self.views(values_P).items()
        }

    def views(self, flat_P: torch.Tensor) -> dict[str, torch.Tensor]:
        """View a flat vector, such as the parameters or a moment, as PEFT's tensors."""
        views = {}
        for target in self.targets:
            A, B_T = target.split(flat_P, self.rank)
            views[peft_name(target, "A")], views[peft_name(target, "B")] = A, B_T.mT
        return views

    def move(self, parameters_P: torch.Tensor, gradients_P: torch.Tensor) -> None:
        """Switch to other storage that already holds the same values."""
        self.flat_P.data = parameters_P
        self.flat_P.grad = gradients_P
        self.gradients = self.views(gradients_P)
        for name, view in self.views(parameters_P).items():
            self.tensors[name].data = view


def peft_name(target: Target, matrix: str) -> str:
    """The parameter's name in a PEFT model."""
    return f"base_model.model.{target.name}.lora_{matrix}.default.weight"


class AdapterGroup:
    """Adapters of one rank and micro-batch size, as rows of one matrix.

    The matrix is rebuilt only when a trial joins or leaves.

    Args:
        adapters: one or more, of equal rank and rows.
        dtype: the base's, in which products are computed.
    """

    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        self.adapters = list(adapters)
        self.rank, self.rows = adapters[0].rank, adapters[0].rows
        self._parameters_GP = torch.stack([adapter.flat_P.data for adapter in adapters])
        self._gradients_GP = torch.stack([adapter.flat_P.grad for adapter in adapters])
        self._scaling_G11 = self._parameters_GP.new_tensor(
            [adapter.scaling for adapter in adapters]
        ).view(-1, 1, 1)
        self._working_GP = self._parameters_GP.to(dtype)  # the same matrix where that is fp32
        self._views: dict[tuple[str, int, int], Weights] = {}
        # Last, so that running out of memory above leaves the adapters where they were.
        for index, adapter in enumerate(adapters):
            adapter.move(self._parameters_GP[index], self._gradients_GP[index])

    def refresh(self) -> None:
        """Pick up the optimizers' changes to the parameters."""
        if self._working_GP is not self._parameters_GP:
            self._working_GP.copy_(self._parameters_GP)

    def weights(self, target: Target, first: int, last: int) -> Weights:
        """A layer's weights in the adapters from `first` up to, but not including, `last`."""
        key = (target.name, first, last)
        if key not in self._views:
            A, B_T = target.split(self._working_GP[first:last], self.rank)
            grad_A, grad_B_T = target.split(self._gradients_GP[first:last], self.rank)
            scaling = self._scaling_G11[first:last]
            self._views[key] = Weights(A, B_T, grad_A, grad_B_T, scaling)
        return self._views[key]


@dataclass(frozen=True)
class Weights:
    """One layer's part of several adapters of equal rank."""

    A_GrI: torch.Tensor
    B_GrO: torch.Tensor
    grad_A_GrI: torch.Tensor
    grad_B_GrO: torch.Tensor
    scaling_G11: torch.Tensor


@dataclass(frozen=True)
class Part:
    """Sequences `rows` of a batch, split evenly among adjacent adapters of one group."""

    group: AdapterGroup
    first: int
    last: int
    rows: slice

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters that own these sequences, in order."""
        return self.group.adapters[self.first : self.last]


class AdaptedLayers:
    """The base's linear layers, with adapters active on parts of each batch.

    Outside `routed` the base is unchanged.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        device = targets[0].module.weight.device
        # Makes autograd call the backward pass of layers whose input needs no gradient.
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.parts: Sequence[Part] = ()
        self.masks: Masks | None = None

    @contextmanager
    def routed(self, parts: Sequence[Part], masks: Masks | None = None) -> Iterator[None]:
        """Route each part of a batch through its own adapters while the context lasts."""
        self.parts, self.masks = parts, masks
        for part in parts:
            part.group.refresh()
        for target in self.targets:
            target.module.forward = partial(self._forward, target)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for target in self.targets:
                vars(target.module).pop("forward", None)
            self.parts, self.masks = (), None

    def _forward(self, target: Target, x_NSI: torch.Tensor) -> torch.Tensor:
        return _AdaptedLinear.apply(x_NSI, self.anchor, self, target)  # type: ignore[no-any-return]


class Masks:
    """Dropout, drawn from each adapter's own generator as if it trained alone."""

    def __init__(
        self, generators: Sequence[torch.Generator], lengths: Sequence[int], device: torch.device
    ) -> None:
        self._generators = generators
        self._lengths = lengths
        self._device = device

    def draw(self, part: Part, offset: int, shape_NSI: tuple[int, int, int]) -> Any:
        """Factors for a part's input, counting its adapters from `offset`; None for all ones."""
        adapters = part.adapters
        if not any(adapter.dropout for adapter in adapters):
            return None
        mask_NSI = torch.ones(shape_NSI, device=self._device)
        rows = part.group.rows
        for index, adapter in enumerate(adapters):
            if adapter.dropout:
                length = self._lengths[offset + index]
                keep = 1 - adapter.dropout
                shape = (rows, length, shape_NSI[2])
                drawn = self._draw(shape, keep, self._generators[offset + index])
                mask_NSI[index * rows : (index + 1) * rows, :length] = drawn
        return mask_NSI

    def _draw(
        self, shape: tuple[int, int, int], keep: float, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw the factors that torch's dropout would draw for an input of this shape."""
        if (
            self._device.type == "cuda"
        ):  # its kernel consumes random numbers in another order than Bernoulli's
            ones = torch.ones(shape, device=self._device)
            return torch._fused_dropout(ones, keep, generator=generator)[0]
        factors = torch.empty(shape, device=self._device)
        return factors.bernoulli_(keep, generator=generator).div_(keep)


class _AdaptedLinear(torch.autograd.Function):
    """y = x W^T + b + s B A dropout(x), with the A, B and s of each part's own adapters.

    The gradients of A and B are added to the groups' matrices; autograd sees only that of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NSI: torch.Tensor, anchor: torch.Tensor, layers: AdaptedLayers, target: Target
    ) -> torch.Tensor:
        module = target.module
        x_NSI = x_NSI.to(module.weight.dtype)
        y_NSO = functional.linear(x_NSI, module.weight, module.bias)
        saved: list[tuple[Part, Weights, Any, Any]] = []
        offset = 0
        for part in layers.parts:
            weights = part.group.weights(target, part.first, part.last)
            x_part = x_NSI[part.rows]
            mask = layers.masks.draw(part, offset, tuple(x_part.shape)) if layers.masks else None
            count = part.last - part.first
            x_GTI = _grouped(_masked(x_part, mask), count)
            h_GrT = torch.bmm(weights.A_GrI, x_GTI.mT).mul_(weights.scaling_G11)
            _grouped(y_NSO[part.rows], count).baddbmm_(h_GrT.mT, weights.B_GrO)
            saved.append((part, weights, mask, h_GrT))
            offset += count
        ctx.module, ctx.saved = module, saved
        ctx.save_for_backward(x_NSI)
        return y_NSO

    @staticmethod
    def backward(ctx: Any, dy_NSO: torch.Tensor) -> Any:  # type: ignore[override]
        (x_NSI,) = ctx.saved_tensors
        dy_NSO = dy_NSO.contiguous()
        dx_NSI = dy_NSO @ ctx.module.weight if ctx.needs_input_grad[0] else None
        for part, weights, mask, h_GrT in ctx.saved:
            count = part.last - part.first
            dy_GTO = _grouped(dy_NSO[part.rows], count)
            x_part = x_NSI[part.rows]
            x_GTI = _grouped(_masked(x_part, mask), count)
            dh_GrT = torch.bmm(weights.B_GrO, dy_GTO.mT).mul_(weights.scaling_G11)
            _add_product(weights.grad_B_GrO, h_GrT, dy_GTO)
            _add_product(weights.grad_A_GrI, dh_GrT, x_GTI)
            if dx_NSI is None:
                continue
            dx_part = dx_NSI[part.rows]
            if mask is None:
                _grouped(dx_part, count).baddbmm_(dh_GrT.mT, weights.A_GrI)
            else:
                dx_part += torch.bmm(dh_GrT.mT, weights.A_GrI).view_as(dx_part) * mask
        return dx_NSI, None, None, None


def _masked(x_NSI: torch.Tensor, mask_NSI: torch.Tensor | None) -> torch.Tensor:
    return x_NSI if mask_NSI is None else (x_NSI * mask_NSI).to(x_NSI.dtype)


def _add_product(sum_GrI: torch.Tensor, x_GrT: torch.Tensor, y_GTI: torch.Tensor) -> None:
    """Add x y to an fp32 sum, whatever the dtype of the factors."""
    if x_GrT.dtype == sum_GrI.dtype:
        sum_GrI.baddbmm_(x_GrT, y_GTI)
    else:
        sum_GrI += torch.bmm(x_GrT, y_GTI)


def _grouped(x_NSI: torch.Tensor, count: int) -> torch.Tensor:
    """Group the sequences of `count` trials, equally many of each: (N, S, I) to (G, T, I)."""
    return x_NSI.view(count, -1, x_NSI.shape[-1])
