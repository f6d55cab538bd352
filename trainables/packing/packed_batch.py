"""Micro-batches of several trials, side by side in one batch.

Shapes: K micro-batches, N sequences, S positions, L of them in a window, W = N x L, T labelled
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainables.data.dataset import IGNORED_LABEL, Sample

_LARGEST_WINDOW = 0.5  # as a share of the width: beyond it copying costs what computing saves


@dataclass(frozen=True)
class Window:
    """Adjacent positions, equally many in each sequence of a batch.

    Attributes:
        indices_W: the positions in the flattened batch.
        length: how many in a sequence, L.
        width: positions of a whole sequence, S.
    """

    indices_W: torch.Tensor
    length: int
    width: int

    def gather(self, x_NSI: torch.Tensor) -> torch.Tensor:
        """What stands in the window: (N, S, I) to (N, L, I)."""
        x_WI = x_NSI.flatten(0, 1).index_select(0, self.indices_W)
        return x_WI.view(-1, self.length, x_WI.shape[-1])

    def scatter(self, x_NLI: torch.Tensor) -> torch.Tensor:
        """The opposite, with zeros around the window: (N, L, I) to (N, S, I)."""
        x_NSI = x_NLI.new_zeros(len(x_NLI), self.width, x_NLI.shape[-1])
        whole = x_NSI.flatten(0, 1).index_copy(0, self.indices_W, x_NLI.flatten(0, 1))
        return whole.view_as(x_NSI)


@dataclass(frozen=True)
class Batch:
    """The input of one pass.

    Attributes:
        input_ids_NS: tokens, right-padded to the longest sequence of all.
        positions_T: row-major positions at which a labelled token is predicted.
        targets_T: the tokens to predict there.
        slots_T: the number of the micro-batch that each belongs to.
        tokens_K: the number of tokens that each micro-batch's loss is averaged over.
        rows: number of sequences in each micro-batch.
        lengths: length of the longest sequence in each micro-batch.
        window: positions that include all of `positions_T`; None if those are most positions.
    """

    input_ids_NS: torch.Tensor
    positions_T: torch.Tensor
    targets_T: torch.Tensor
    slots_T: torch.Tensor
    tokens_K: torch.Tensor
    rows: list[int]
    lengths: list[int]
    window: Window | None

    @classmethod
    def of(
        cls, micro_batches: Sequence[Sequence[Sample]], tokens: Sequence[int], device: torch.device
    ) -> Batch:
        """Concatenate micro-batches, one per slot, on the base's device.

        `tokens`: per slot, how many its loss is averaged over: those of its whole optimizer step.
        """
        lengths = [max(len(s["input_ids"]) for s in samples) for samples in micro_batches]
        width = max(lengths)
        rows: list[list[int]] = []
        positions: list[int] = []
        targets: list[int] = []
        slots: list[int] = []
        predicting_N: list[list[int]] = []
        for number, samples in enumerate(micro_batches):
            for sample in samples:
                labels = sample["labels"]
                predicting = [p for p, label in enumerate(labels[1:]) if label != IGNORED_LABEL]
                positions += [len(rows) * width + position for position in predicting]
                targets += [labels[position + 1] for position in predicting]
                slots += [number] * len(predicting)
                predicting_N.append(predicting)
                rows.append(sample["input_ids"] + [0] * (width - len(labels)))

        def tensor(values: Sequence[int] | list[list[int]]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            input_ids_NS=tensor(rows),
            positions_T=tensor(positions),
            targets_T=tensor(targets),
            slots_T=tensor(slots),
            tokens_K=tensor(tokens),
            rows=[len(samples) for samples in micro_batches],
            lengths=lengths,
            window=_window(predicting_N, width, device),
        )


def _window(positions_N: Sequence[list[int]], width: int, device: torch.device) -> Window | None:
    """The window that has these positions of each sequence; None if it were most of the batch."""
    firsts = [positions[0] if positions else 0 for positions in positions_N]
    lasts = [positions[-1] if positions else 0 for positions in positions_N]
    length = max(last - first + 1 for first, last in zip(firsts, lasts, strict=True))
    if length > width * _LARGEST_WINDOW:
        return None
    starts = [row * width + min(first, width - length) for row, first in enumerate(firsts)]
    starts_N = torch.tensor(starts, device=device)
    indices_NL = starts_N[:, None] + torch.arange(length, device=device)
    return Window(indices_NL.flatten(), length, width)
