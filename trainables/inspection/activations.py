"""Runs base and tuned model on the same prompts and compares their layers' activations.

Shapes: B prompts, S positions, T kept positions of all prompts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trainables.config import TrialConfig
from trainables.data.dataset import text_ids
from trainables.errors import CannotInspect, UserError, first_line
from trainables.evaluation.drift import padded
from trainables.evaluation.evaluator import evaluating
from trainables.inspection.attention import LayerAttention
from trainables.inspection.inspection_records import AttentionDrift, RepresentationDrift
from trainables.models.adapter import Adapted
from trainables.models.loading import device, load_model, load_tokenizer, shared_base
from trainables.records.item_records import read_items
from trainables.records.schema import BaseRecord

PROMPTS = 64
PROMPT_TOKENS = 256
POSITIONS = 2048
_FEWEST_TOKENS = 3  # the third query is the first with two keys besides key 0
_GOLDEN_RATIO = (1 + 5**0.5) / 2
_ATTENTION_ELEMENTS = 1 << 26  # one model's probabilities in all layers of a batch: 256 MiB

Forward = Callable[[torch.Tensor, torch.Tensor], Any]


@dataclass(frozen=True)
class ActivationDrift:
    """Attention and representation drift of every layer, and the sample they were measured on."""

    attention: tuple[AttentionDrift, ...]
    representation: tuple[RepresentationDrift, ...]
    prompts: int
    tokens: int


def choose_prompts(base: BaseRecord, items_jsonl: Path) -> list[str]:
    """The distinct prompts of the in-domain and retention tasks, taken round-robin by task.

    A task's prompts are spread over its documents, which a group sorts by its tasks.
    """
    by_task: dict[str, dict[str, None]] = {}
    for item in read_items(items_jsonl):
        if item.task in base.scores and base.scores[item.task].role != "ood":
            by_task.setdefault(item.task, {})[item.prompt] = None
    turns = zip_longest(*(_spread(list(prompts)) for prompts in by_task.values()))
    return list(dict.fromkeys(p for turn in turns for p in turn if p is not None))


def _spread(prompts: list[str]) -> list[str]:
    """All of them, in an order of which any first few are spread evenly over the list."""
    order = sorted(range(len(prompts)), key=lambda index: index * _GOLDEN_RATIO % 1)
    return [prompts[index] for index in order]


def encode(tokenizer: Any, prompts: Iterable[str]) -> list[list[int]]:
    """Token ids of the first 64 prompts that differ in their last 256 tokens, and have three.

    A prompt's few-shot examples come first, its question last. A beginning-of-sequence token is
    kept, and not doubled if a chat template has written it.
    """
    found: dict[tuple[int, ...], None] = {}
    for prompt in prompts:
        ids = text_ids(tokenizer, prompt)
        first = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
        cut = (*first, *ids[len(first) :][len(first) - PROMPT_TOKENS :])
        if len(cut) >= _FEWEST_TOKENS:
            found[cut] = None
        if len(found) == PROMPTS:
            break
    return [list(ids) for ids in found]


def activation_drift(config: TrialConfig, weights_dir: Path, prompts: list[str]) -> ActivationDrift:
    """Compare the trial's model with the base on the prompts that `encode` takes.

    An adapter needs one model in memory, full fine-tuning two. Attention probabilities are kept for
    one batch at a time, hidden states for at most 2048 token positions.

    Raises:
        CannotInspect: no prompt has three tokens, or the model has no attention probabilities of
            known layers.
    """
    with _both_models(config, weights_dir) as (base, tuned, model_config):
        tokenizer = load_tokenizer(config.model)
        encoded = encode(tokenizer, prompts)
        if not encoded:
            raise CannotInspect(f"no prompt has {_FEWEST_TOKENS} tokens")
        heads = getattr(model_config, "num_attention_heads", 1)  # state spaces have none
        per_prompt = model_config.num_hidden_layers * heads * max(map(len, encoded)) ** 2
        batch_size = max(1, _ATTENTION_ELEMENTS // per_prompt)
        tokens = sum(map(len, encoded))
        comparison = _Comparison(model_config.num_hidden_layers, stride=-(-tokens // POSITIONS))
        for start in range(0, len(encoded), batch_size):
            batch = encoded[start : start + batch_size]
            ids_BS = padded(batch, tokenizer.pad_token_id)
            mask_BS = padded([[1] * len(ids) for ids in batch], 0)
            comparison.add(base(ids_BS, mask_BS), tuned(ids_BS, mask_BS), mask_BS)
        return ActivationDrift(*comparison.results(), prompts=len(encoded), tokens=tokens)


class _Comparison:
    """Accumulates the outputs of both models by batches, at every `stride`-th token."""

    def __init__(self, layers: int, stride: int) -> None:
        self._layers = layers
        self._stride = stride
        self._seen = 0
        self._attention: dict[int, LayerAttention] = {}
        self._states: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._is_first: list[torch.Tensor] = []

    def add(self, base: Any, tuned: Any, mask_BS: torch.Tensor) -> None:
        attentions = getattr(base, "attentions", None)
        if not attentions or None in attentions:
            raise CannotInspect("the model has no attention probabilities to compare")
        if len(attentions) != self._layers:
            raise CannotInspect(f"{len(attentions)} of {self._layers} layers have attention")
        if not tuned.attentions or None in tuned.attentions:
            raise CannotInspect("the tuned model has no attention probabilities to compare")
        pairs = zip(attentions, tuned.attentions, strict=True)
        for layer, (before, after) in enumerate(pairs):
            moved = self._attention.setdefault(layer, LayerAttention(layer))
            moved.add(before, after, mask_BS.to(before.device))
        kept = self._positions(mask_BS)
        first_BS = torch.zeros_like(kept)
        first_BS[:, 0] = True
        self._is_first.append(first_BS[kept])
        if any(states.shape[:2] != mask_BS.shape for states in base.hidden_states):
            raise CannotInspect("the model has several hidden states for each token")  # Gemma 3n
        # The first entry is the embeddings, before any layer.
        pairs = zip(base.hidden_states[1:], tuned.hidden_states[1:], strict=True)
        for layer, states in enumerate(pairs):
            before, after = (state[kept.to(state.device)].float().cpu() for state in states)
            self._states.setdefault(layer, []).append((before, after))

    def _positions(self, mask_BS: torch.Tensor) -> torch.Tensor:
        """Every `stride`-th token, counted over all batches, as a mask (B, S)."""
        kept = mask_BS.bool().clone()
        rank = kept.flatten().cumsum(0).reshape(kept.shape) - 1 + self._seen
        self._seen += int(kept.sum())
        return kept & (rank % self._stride == 0)

    def results(self) -> tuple[tuple[AttentionDrift, ...], tuple[RepresentationDrift, ...]]:
        later = ~torch.cat(self._is_first)
        representation = []
        for layer, pairs in self._states.items():
            before_TD, after_TD = (torch.cat(states) for states in zip(*pairs, strict=True))
            representation.append(
                RepresentationDrift(
                    layer=layer,
                    cka_drift=linear_cka_drift(before_TD, after_TD),
                    cka_drift_without_first=linear_cka_drift(before_TD[later], after_TD[later]),
                )
            )
        return tuple(a.result() for a in self._attention.values()), tuple(representation)


@contextmanager
def _both_models(config: TrialConfig, weights_dir: Path) -> Iterator[tuple[Forward, Forward, Any]]:
    """Forward passes of base and tuned model, and the decoder's configuration.

    Only eager attention returns its probabilities.
    """
    eager = config.model.model_copy(update={"attention": "eager"})
    base = shared_base(eager)
    if config.method.changes_base:
        folder = str(weights_dir.absolute())
        # The base's class reads the weights: code beside them is not trusted.
        own = {"name": folder, "revision": None, "trust_remote_code": False, "eos_token": None}
        try:
            tuned = load_model(eager.model_copy(update=own), architecture=type(base)).to(device())
        except (UserError, SafetensorError) as error:
            raise CannotInspect(f"{folder} cannot be loaded: {first_line(error)}") from error
        with evaluating(base), evaluating(tuned):
            yield _forward(base), _forward(tuned), base.config.get_text_config()
        return
    try:
        adapted = Adapted.saved(base, weights_dir)
    except BaseException:
        shared_base.cache_clear()  # it may have parts of the adapter
        raise
    run_tuned = _forward(adapted.model)

    def run_base(ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
        with adapted.without():
            return run_tuned(ids_BS, mask_BS)

    try:
        with evaluating(adapted.model):
            yield run_base, run_tuned, base.config.get_text_config()
    finally:
        if not adapted.remove():
            shared_base.cache_clear()


def _forward(model: Any) -> Forward:
    def run(ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
        return model(
            input_ids=ids_BS.to(model.device),
            attention_mask=mask_BS.to(model.device),
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )

    return run


def linear_cka_drift(X_TD: torch.Tensor, Y_TD: torch.Tensor) -> float:
    """1 - linear CKA: 0 if one is the other rotated, scaled or shifted, at most 1.

    CKA = norm_F(Y^T X)^2 / (norm_F(X^T X) norm_F(Y^T Y)) of centred columns (Kornblith et al.
    2019, eq. 5), computed from T x T Gram matrices if there are fewer positions than features.

    Returns:
        The drift; 0 if both are constant over positions, 1 if only one is.
    """
    X_TD, Y_TD = (Z.double() - Z.double().mean(0) for Z in (X_TD, Y_TD))
    if X_TD.shape[0] <= X_TD.shape[1]:
        gram_X, gram_Y = X_TD @ X_TD.T, Y_TD @ Y_TD.T
        shared = (gram_X * gram_Y).sum()
    else:
        gram_X, gram_Y = X_TD.T @ X_TD, Y_TD.T @ Y_TD
        shared = (Y_TD.T @ X_TD).square().sum()
    norms = gram_X.norm() * gram_Y.norm()
    if norms == 0:
        return 0.0 if gram_X.norm() == gram_Y.norm() else 1.0
    return float((1 - shared / norms).clamp(0, 1))
