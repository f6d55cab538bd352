"""Low-rank adapters of several trials on one frozen base, in one forward and backward pass.

Trials of one layout share one matrix, one row per trial, so their products are batched without
padding or copies. Gradients are written directly into a matrix of the same shape.

B and the activations between A and B are stored transposed: a small rank is then the number of rows
of a product, never of columns, which is up to four times as fast (MKL, rank 8).

Shapes: G trials in a group, P parameters of one adapter, N sequences, S positions, T tokens of a
trial, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch.nn import functional

from trainables.methods.base import LowRankLayout, Method
from trainables.models.four_bit import plain_weight
from trainables.packing.packed_dropout import Masks

# Ranges of a group whose views are kept: each takes about a megabyte for a large model.
_MOST_VIEWED = 32


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

    Attributes:
        layout: what its method says of it.
        flat_P: its parameters; `grad` accumulates the gradient of the losses so far.
        tensors: views of `flat_P` by PEFT's parameter names.
    """

    def __init__(
        self, layout: LowRankLayout, targets: Sequence[Target], values_P: torch.Tensor
    ) -> None:
        self.layout = layout
        self.targets = targets
        self.flat_P = torch.nn.Parameter(values_P)
        self.flat_P.grad = torch.zeros_like(values_P)
        self.tensors = {
            name: torch.nn.Parameter(view) for name, view in self.views(values_P).items()
        }

    def at_strength(self, method: Method, strength: float) -> Adapter:
        """An adapter of its own with this one's update, `strength` times as large."""
        scaled = Adapter(self.layout, self.targets, self.flat_P.detach().clone())
        changed = method.at_strength(self.tensors, {}, strength)
        with torch.no_grad():
            for name, values in changed.items():
                scaled.tensors[name].copy_(values)
        return scaled

    def views(self, flat_P: torch.Tensor) -> dict[str, torch.Tensor]:
        """View a flat vector, such as the parameters or a moment, as PEFT's tensors."""
        views = {}
        for target in self.targets:
            A, B_T = target.split(flat_P, self.layout.rank)
            views[peft_name(target, "A")], views[peft_name(target, "B")] = A, B_T.mT
        return views

    def freeze(self) -> None:
        """Clear the gradient of what its method does not train."""
        assert self.flat_P.grad is not None  # noqa: S101 - it has one from the beginning
        for part in self.frozen(self.flat_P.grad):
            part.zero_()

    def frozen(self, flat_P: torch.Tensor) -> Iterator[torch.Tensor]:
        """Views of the rows of A and of transposed B in a flat vector that are not trained."""
        if self.layout.trained is not None:
            for target in self.targets:
                for matrix in target.split(flat_P, self.layout.rank):
                    yield matrix[self.layout.trained :]

    def move(self, parameters_P: torch.Tensor, gradients_P: torch.Tensor) -> None:
        """Switch to other storage that already holds the same values."""
        self.flat_P.data = parameters_P
        self.flat_P.grad = gradients_P
        for name, view in self.views(parameters_P).items():
            self.tensors[name].data = view

    def release(self) -> None:
        """Hold no memory, in particular not the group's matrix."""
        for parameter in (self.flat_P, *self.tensors.values()):
            parameter.data = parameter.data.new_empty(0)
        self.flat_P.grad = None


def peft_name(target: Target, matrix: str) -> str:
    """The parameter's name in a PEFT model."""
    return f"base_model.model.{target.name}.lora_{matrix}.default.weight"


class AdapterGroup:
    """Adapters of one layout key, as rows of one matrix.

    The matrix is rebuilt only when a trial joins or leaves. Products are computed in the base's
    dtype.
    """

    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        self.adapters = list(adapters)
        self.rank = adapters[0].layout.rank
        self._parameters_GP = torch.stack([adapter.flat_P.data for adapter in adapters])
        self._gradients_GP = torch.stack([adapter.flat_P.grad for adapter in adapters])
        layouts = [adapter.layout for adapter in adapters]
        # Dropout's 1 / (1 - p) is part of the scaling, rather than of each kept element.
        self._scalings_G11 = {
            drops: self._parameters_GP.new_tensor(
                [each.scaling / (1 - each.dropout * drops) for each in layouts]
            ).view(-1, 1, 1)
            for drops in (False, True)
        }
        self._working_GP = self._parameters_GP.to(dtype)  # the same matrix where that is fp32
        self._views: dict[tuple[int, int, bool], dict[str, Weights]] = {}
        # Last, so that running out of memory above leaves the adapters where they were.
        for index, adapter in enumerate(adapters):
            adapter.move(self._parameters_GP[index], self._gradients_GP[index])

    def refresh(self, first: int, last: int) -> None:
        """Pick up the optimizers' changes to adapters from `first` up to, not including, `last`."""
        if self._working_GP is not self._parameters_GP:
            self._working_GP[first:last].copy_(self._parameters_GP[first:last])

    def weights(self, target: Target, first: int, last: int, drops: bool) -> Weights:
        """A layer's weights in the adapters from `first` up to, but not including, `last`.

        `drops` says whether the layer's input has been through their dropout.
        """
        views = self._views.get((first, last, drops))
        if views is None:
            if len(self._views) == _MOST_VIEWED:
                self._views.clear()
            views = self._views[first, last, drops] = {}
        if target.name not in views:
            A, B_T = target.split(self._working_GP[first:last], self.rank)
            grad_A, grad_B_T = target.split(self._gradients_GP[first:last], self.rank)
            scaling_G11 = self._scalings_G11[drops][first:last]
            views[target.name] = Weights(A, B_T, grad_A, grad_B_T, scaling_G11)
        return views[target.name]


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
    """Adjacent adapters of one group, each with `rows` sequences of a batch."""

    group: AdapterGroup
    first: int
    last: int
    rows: int


class Routing:
    """Which adapters the sequences of a batch go through, in order, with these dropout masks."""

    def __init__(self, parts: Sequence[Part], masks: Masks | None) -> None:
        self.parts = parts
        self._counts = [part.last - part.first for part in parts]
        self._sizes = [part.rows * count for part, count in zip(parts, self._counts, strict=True)]
        self.masks = masks

    def split(self, x_NSI: torch.Tensor) -> list[torch.Tensor]:
        """Each part's share, by adapter: (N, S, I) to (G, T, I) each."""
        if len(self.parts) == 1:
            return [x_NSI.view(self._counts[0], -1, x_NSI.shape[-1])]
        shares = x_NSI.split(self._sizes)
        length = x_NSI.shape[-1]
        return [x.view(count, -1, length) for x, count in zip(shares, self._counts, strict=True)]


class AdaptedLayers:
    """The base's linear layers, with adapters active on parts of each batch.

    Outside `routed` the base is unchanged.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        device = targets[0].module.weight.device
        # Makes autograd call the backward pass of layers whose input needs no gradient.
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._masks: Masks | None = None

    @contextmanager
    def routed(self, parts: Sequence[Part], masks: Masks | None = None) -> Iterator[None]:
        """Route each part of a batch through its own adapters while the context lasts."""
        routing = Routing(parts, masks)
        for part in parts:
            part.group.refresh(part.first, part.last)
        for target in self.targets:
            forward = partial(_AdaptedLinear.apply, self._anchor, routing, target)
            target.module.forward = forward
        self._masks = masks
        try:
            yield
        finally:
            self._masks = None
            for target in self.targets:
                vars(target.module).pop("forward", None)

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of what is computed next and of its recomputation, which drops the same."""
        return nullcontext(), nullcontext() if self._masks is None else self._masks.again()


class _AdaptedLinear(torch.autograd.Function):
    """y = x W^T + b + s B A dropout(x), with the A, B and s of each part's own adapters.

    The gradients of A and B are added to the groups' matrices; autograd sees only that of x.

    A small model's pass is thousands of small products, whose calls from Python cost as much as
    they do: hence one `split` for all parts. Autograd saves all that grows with the tokens, as it
    frees what will be recomputed.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, routing: Routing, target: Target, x_NSI: torch.Tensor
    ) -> torch.Tensor:
        module = target.module
        base_OI = plain_weight(module)
        kept_NSI = routing.masks.draw(x_NSI) if routing.masks else None
        x_NSI = x_NSI.to(base_OI.dtype).contiguous()
        y_NSO = functional.linear(x_NSI, base_OI, module.bias)
        weights_by_part: list[Weights] = []
        hs_GrT = []
        xs, ys = routing.split(_kept(x_NSI, kept_NSI)), routing.split(y_NSO)
        for part, x_GTI, y_GTO in zip(routing.parts, xs, ys, strict=True):
            weights = part.group.weights(target, part.first, part.last, kept_NSI is not None)
            h_GrT = torch.bmm(weights.A_GrI, x_GTI.transpose(1, 2)).mul_(weights.scaling_G11)
            y_GTO.baddbmm_(h_GrT.transpose(1, 2), weights.B_GrO)
            weights_by_part.append(weights)
            hs_GrT.append(h_GrT)
        ctx.module, ctx.weights_by_part, ctx.routing = module, weights_by_part, routing
        ctx.save_for_backward(x_NSI, kept_NSI, *hs_GrT)
        return y_NSO

    @staticmethod
    def backward(ctx: Any, dy_NSO: torch.Tensor) -> Any:
        x_NSI, kept_NSI, *hs_GrT = ctx.saved_tensors
        dy_NSO = dy_NSO.contiguous()
        dx_NSI: Any = dy_NSO @ plain_weight(ctx.module) if ctx.needs_input_grad[3] else None
        # What reaches the input through adapters is dropped where the input was.
        is_dropped = dx_NSI is not None and kept_NSI is not None
        through_NSI = torch.zeros_like(x_NSI) if is_dropped else dx_NSI
        split = ctx.routing.split
        xs, dys = split(_kept(x_NSI, kept_NSI)), split(dy_NSO)
        throughs = repeat(None) if through_NSI is None else split(through_NSI)
        for weights, h_GrT, x_GTI, dy_GTO, through_GTI in zip(
            ctx.weights_by_part, hs_GrT, xs, dys, throughs, strict=False
        ):
            dh_GrT = torch.bmm(weights.B_GrO, dy_GTO.transpose(1, 2)).mul_(weights.scaling_G11)
            _add_product(weights.grad_B_GrO, h_GrT, dy_GTO)
            _add_product(weights.grad_A_GrI, dh_GrT, x_GTI)
            if through_GTI is not None:
                through_GTI.baddbmm_(dh_GrT.transpose(1, 2), weights.A_GrI)
        if is_dropped:
            dx_NSI += through_NSI.mul_(kept_NSI)
        return None, None, None, dx_NSI


def _kept(x_NSI: torch.Tensor, kept_NSI: torch.Tensor | None) -> torch.Tensor:
    return x_NSI if kept_NSI is None else x_NSI * kept_NSI


def _add_product(sum_GrI: torch.Tensor, x_GrT: torch.Tensor, y_GTI: torch.Tensor) -> None:
    """Add x y to an fp32 sum, whatever the dtype of the factors."""
    if x_GrT.dtype == sum_GrI.dtype:
        sum_GrI.baddbmm_(x_GrT, y_GTI)
    else:
        sum_GrI.add_(torch.bmm(x_GrT, y_GTI))
