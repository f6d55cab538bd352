"""Micro-batches of several trials, side by side in one batch.

Shapes: K micro-batches, N sequences, S positions, T labelled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainables.data.dataset import IGNORED_LABEL, Sample, labelled


@dataclass(frozen=True)
class Batch:
    """The input of one pass.

    Attributes:
        input_ids_NS: tokens, right-padded to the longest sequence of all.
        positions_T: row-major positions at which a labelled token is predicted.
        targets_T: the tokens to predict there.
        slots_T: the number of the micro-batch that each belongs to.
        tokens_K: the number of tokens that each micro-batch's loss is averaged over.
        sequences_T: the number of the sequence that each is in.
        labelled: number of labelled tokens in each micro-batch.
        rows: number of sequences in each micro-batch.
        lengths: length of the longest sequence in each micro-batch.
    """

    input_ids_NS: torch.Tensor
    positions_T: torch.Tensor
    targets_T: torch.Tensor
    slots_T: torch.Tensor
    sequences_T: torch.Tensor
    tokens_K: torch.Tensor
    labelled: list[int]
    rows: list[int]
    lengths: list[int]

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
        counts = [sum(labelled(sample) for sample in samples) for samples in micro_batches]
        for number, samples in enumerate(micro_batches):
            for sample in samples:
                labels = sample["labels"]
                predicting = [p for p, label in enumerate(labels[1:]) if label != IGNORED_LABEL]
                positions += [len(rows) * width + position for position in predicting]
                targets += [labels[position + 1] for position in predicting]
                slots += [number] * len(predicting)
                rows.append(sample["input_ids"] + [0] * (width - len(labels)))

        def tensor(values: Sequence[int] | list[list[int]]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            input_ids_NS=tensor(rows),
            positions_T=tensor(positions),
            targets_T=tensor(targets),
            slots_T=tensor(slots),
            sequences_T=tensor(positions) // width,
            tokens_K=tensor(tokens),
            labelled=counts,
            rows=[len(samples) for samples in micro_batches],
            lengths=lengths,
        )
