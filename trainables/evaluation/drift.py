"""How far the tuned model's predictions have moved: KL drift and LM drift.

The workers of a group share the batches of either, see `divided`.

Shapes: N sequences, S positions, V vocabulary, T scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from trainables.config.eval_config import GENERAL_TEXT_TOKENS
from trainables.data.dataset import IGNORED_LABEL, Sample, context_ids, labelled
from trainables.evaluation.evaluator import evaluating
from trainables.evaluation.logits import backbone_once, logits_at
from trainables.evaluation.model_limits import count_positions
from trainables.process.collectives import divided
from trainables.process.memory_estimate import LOGITS_AT_ONCE


@dataclass(frozen=True)
class KlReference:
    """Tokens sampled from the base after prompts of the new task, and its distributions there.

    Attributes:
        input_ids_NS: prompt and sampled tokens, padded on the right.
        attention_mask_NS: 1 on both, 0 on padding.
        scored_NS: true at each position whose next token was sampled.
        log_probs_TV: the base's log-probabilities there, in row-major order of `scored_NS`.
    """

    input_ids_NS: torch.Tensor
    attention_mask_NS: torch.Tensor
    scored_NS: torch.Tensor
    log_probs_TV: torch.Tensor

    def save(self, file: Path) -> None:
        """Write it as safetensors."""
        save_file(
            {
                "input_ids": self.input_ids_NS,
                "attention_mask": self.attention_mask_NS,
                "scored": self.scored_NS,
                "log_probs": self.log_probs_TV,
            },
            file,
        )

    @classmethod
    def load(cls, file: Path) -> KlReference:
        """Read it back."""
        saved = load_file(file)
        return cls(saved["input_ids"], saved["attention_mask"], saved["scored"], saved["log_probs"])


def sample_reference(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    tokens: int,
    batch_size: int,
    seed: int,
) -> KlReference:
    """Sample up to `tokens` tokens after each prompt from the base's own distribution.

    Prompts are cut on the left to leave room for them in what the model can read.
    """
    contexts = [kl_context(tokenizer, prompt) for prompt in prompts]
    if (positions := count_positions(model)) is not None:
        contexts = [context[-max(1, positions - tokens) :] for context in contexts]
    with evaluating(model):
        torch.manual_seed(seed)
        with _plain_sampling(model):
            sequences = [_continued(model, tokenizer, context, tokens) for context in contexts]
        input_ids = padded(sequences, tokenizer.pad_token_id)
        attention_mask = padded([[1] * len(ids) for ids in sequences], 0)
        scored = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, (context, ids) in enumerate(zip(contexts, sequences, strict=True)):
            scored[row, len(context) - 1 : len(ids) - 1] = True
        log_probs = [
            _log_probs(model, input_ids[rows], attention_mask[rows], scored[rows])
            for rows in _batches(len(sequences), batch_size)
        ]
    return KlReference(input_ids, attention_mask, scored, torch.cat(log_probs))


def _continued(model: Any, tokenizer: Any, context: list[int], tokens: int) -> list[int]:
    """The context and up to `tokens` sampled ones."""
    context_1S = torch.tensor([context]).to(model.device)
    (sampled,) = model.generate(
        input_ids=context_1S,
        attention_mask=torch.ones_like(context_1S),
        do_sample=True,
        top_k=0,  # Transformers' own is 50
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id,
    ).tolist()
    return list(sampled)


@contextmanager
def _plain_sampling(model: Any) -> Iterator[None]:
    """Ignore how its makers advise to sample, such as `min_p`; it still ends texts."""
    advised = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=advised.eos_token_id)
    try:
        yield
    finally:
        model.generation_config = advised


def kl_context(tokenizer: Any, prompt: str) -> list[int]:
    """What the base continues: the prompt's tokens, and at least one, as in the harness."""
    # Training and the harness count a trailing space as part of what follows.
    ids = context_ids(tokenizer, prompt.rstrip() or prompt)
    first = tokenizer.bos_token_id
    return ids or [tokenizer.eos_token_id if first is None else first]


def kl_drift(model: Any, reference: KlReference, batch_size: int) -> float:
    """KL(base || tuned), nats per token, >= 0 (RL's Razor, 2509.04259).

    mean over sampled tokens of sum_v p0(v) log(p0(v) / p(v))
    """
    ends = reference.scored_NS.sum(-1).cumsum(0).tolist()

    def divergence(rows: slice) -> torch.Tensor:
        tuned_TV = _log_probs(
            model,
            reference.input_ids_NS[rows],
            reference.attention_mask_NS[rows],
            reference.scored_NS[rows],
        )
        first = ends[rows.start - 1] if rows.start else 0
        base_TV = reference.log_probs_TV[first : first + len(tuned_TV)]
        return (base_TV.exp() * (base_TV - tuned_TV)).sum(-1)

    with evaluating(model):
        parts = divided(_batches(len(ends), batch_size), divergence)
    return float(torch.cat(parts).mean().clamp_min(0))


def _log_probs(
    model: Any,
    input_ids_NS: torch.Tensor,
    attention_mask_NS: torch.Tensor,
    scored_NS: torch.Tensor,
) -> torch.Tensor:
    """Log-probabilities over the vocabulary at the scored positions, shape (T, V), fp32, CPU."""
    logits_TV = logits_at(
        model,
        scored_NS.flatten().nonzero()[:, 0].to(model.device),
        input_ids=input_ids_NS.to(model.device),
        attention_mask=attention_mask_NS.to(model.device),
    )
    return logits_TV.float().log_softmax(-1).cpu()


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def general_nll(model: Any, tokenizer: Any, documents: Sequence[str], batch_size: int) -> float:
    """Cross-entropy on general text, nats per token.

    Documents are cut at GENERAL_TEXT_TOKENS, or at what the model can read. Its rise over the
    base's is the LM drift (PEFT, method_comparison).
    """
    most = min(GENERAL_TEXT_TOKENS, count_positions(model) or GENERAL_TEXT_TOKENS)
    encoded = tokenizer(list(documents), truncation=True, max_length=most)
    samples: list[Sample] = [{"input_ids": ids, "labels": ids} for ids in encoded["input_ids"]]
    return token_nll(model, samples, batch_size)


def token_nll(model: Any, samples: Sequence[Sample], batch_size: int) -> float:
    """Mean cross-entropy over the labelled tokens of all samples, nats per token.

    Raises:
        ValueError: no token has a label.
    """
    batches = _batches(len(samples), batch_size)
    # As many for each batch, since under ZeRO-3 a pass takes all workers.
    most = max(sum(map(labelled, samples[rows])) for rows in batches)
    tiles = max(1, math.ceil(most * model.config.get_text_config().vocab_size / LOGITS_AT_ONCE))

    def summed_nll(rows: slice) -> tuple[float, int]:
        return _summed_nll(model, samples[rows], tiles)

    with evaluating(model):
        parts = divided(batches, summed_nll)
    total, count = map(sum, zip(*parts, strict=True))
    if count == 0:
        raise ValueError("no token has a label")
    return total / count


def _summed_nll(model: Any, batch: Sequence[Sample], tiles: int) -> tuple[float, int]:
    """Cross-entropy summed over a batch's labelled tokens, and their number.

    `tiles`: number of parts whose logits are computed one after the other.
    """
    input_ids_NS = padded([sample["input_ids"] for sample in batch], 0).to(model.device)
    mask_NS = padded([[1] * len(sample["input_ids"]) for sample in batch], 0).to(model.device)
    labels_NS = padded([sample["labels"] for sample in batch], IGNORED_LABEL)
    targets_NS = torch.full_like(labels_NS, IGNORED_LABEL)
    targets_NS[:, :-1] = labels_NS[:, 1:]
    targets = targets_NS.flatten().to(model.device)
    positions_T = (targets != IGNORED_LABEL).nonzero()[:, 0]

    def summed(tile: torch.Tensor) -> float:
        logits = logits_at(model, tile, input_ids=input_ids_NS, attention_mask=mask_NS)
        return float(cross_entropy(logits.float(), targets[tile], reduction="sum"))

    with backbone_once(model):
        return sum(map(summed, positions_T.tensor_split(tiles))), len(positions_T)


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """The rows (N, S), filled up with a value on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
