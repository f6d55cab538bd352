"""A causal model for lm-evaluation-harness: the answers of HFLM in fewer and smaller passes.

What HFLM does once per request is done once per process if it is the same at every evaluation
(tokenising, batching), and in a forward pass once per shared prefix or computed token. Generation
that is not greedy is left to HFLM.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteria, StoppingCriteriaList

from trainables.compat.transformers import attention_kind
from trainables.evaluation.continuations import Batch, Request, lay_out, score
from trainables.evaluation.logits import logits_at
from trainables.process.collectives import agreed, divided, world_size
from trainables.process.lost_process import is_lost_worker
from trainables.process.out_of_memory import is_out_of_memory

Answers = list[tuple[float, bool]]  # per request: log-likelihood, and whether it is greedy
Routed = Callable[[int], AbstractContextManager[None]]

# A sequence counts as at least this many tokens of a batch.
_LEAST_TOKENS = 64
# Larger batches fall out of a CPU's caches: measured 1.5 times slower at three times the size.
_CPU_BATCH_TOKENS = 512
# Largest difference between logits of equivalent computations, as a share of the difference that
# ignoring the mask makes. In bfloat16 0.03 to 0.13 were measured, as rounding grows by layer.
_ROUNDING, _ROUNDING_OF_HALVES = 1e-3, 0.3


@dataclass
class Layouts:
    """What evaluations of one base and its tuned copies share.

    Attributes:
        batches: batches of the requests seen so far, by the requests' texts.
        shares_prefixes: whether the model supports rows that branch; None until tested.
    """

    batches: dict[Hashable, list[Batch]] = field(default_factory=dict)
    shares_prefixes: bool | None = None

    def copies_in(self, tokens: int, device: torch.device) -> int:
        """How many copies of the largest batch fit into `tokens`, at least 1."""
        if device.type == "cpu":
            tokens = min(tokens, _CPU_BATCH_TOKENS)
        sizes = [batch.input_ids_NS.numel() for known in self.batches.values() for batch in known]
        return max(1, tokens // max(sizes)) if sizes else 1


class HarnessModel(HFLM):
    """One model for one evaluation.

    Args:
        model: the model to evaluate, in evaluation mode.
        tokenizer: its tokenizer.
        batch_size: see `EvalSuite`.
        layouts: from earlier evaluations of the same architecture; new requests are added.
        answers: answers of the model already known, by the requests' texts; see `answer_ahead`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        layouts: Layouts,
        answers: Mapping[Hashable, Answers] | None = None,
    ) -> None:
        with _without_tying(model):
            super().__init__(
                pretrained=model,
                backend="causal",  # else by the family, of which BART's has encoders, too
                tokenizer=tokenizer,
                batch_size=batch_size,
                softmax_dtype="float32",
            )
        self._layouts = layouts
        self._answers = answers or {}
        self._own_batch_size = batch_size

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Answers:
        """As in HFLM, but requests are tokenised and laid out only when first seen."""
        texts = tuple(request.args for request in requests)
        if texts in self._answers:
            return self._answers[texts]
        if texts in self._layouts.batches:
            return self._score(self._layouts.batches[texts])
        answers: Answers = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def answer_ahead(self, copies: int, routed: Routed) -> Iterator[tuple[Hashable, list[Answers]]]:
        """Answers of several models that share this one's base, in passes they also share.

        Args:
            copies: number of models.
            routed: called with the rows per model; within it each model's rows use its own layers.

        Yields:
            The texts of requests seen before, and each model's answers.
        """

        def forward(batch: Batch) -> torch.Tensor:
            with routed(len(batch.input_ids_NS)):
                return self._logits(batch, copies)

        for texts, batches in self._layouts.batches.items():
            yield texts, score(batches, forward)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Answers:
        batches = self._lay_out([_cut(request, self.max_length) for request in requests])
        if requests[0][0] is not None:  # windows of a rolling likelihood have no text
            self._layouts.batches[tuple(texts for texts, _, _ in requests)] = batches
        return self._score(batches)

    def _lay_out(self, requests: Sequence[Request]) -> list[Batch]:
        if self._layouts.shares_prefixes is None:
            self._layouts.shares_prefixes = agreed(self._computes_branches())
        longest = max(len(request.inputs) for request in requests)
        tokens = self._own_batch_size * max(longest, _LEAST_TOKENS)
        if self.device.type == "cpu":
            tokens = min(tokens, _CPU_BATCH_TOKENS)
        hidden = self.config.get_text_config().hidden_size
        return lay_out(requests, self._layouts.shares_prefixes, hidden, tokens)

    def _score(self, batches: Sequence[Batch]) -> Answers:
        (answers,) = score(batches, self._logits)
        return answers

    def _logits(self, batch: Batch, copies: int = 1) -> torch.Tensor:
        """Logits of `copies` copies of a batch, stacked, at its computed positions: (M, U, V)."""
        device = self.device
        inputs = {"input_ids": batch.input_ids_NS.to(device).repeat(copies, 1)}
        visible = batch.visible(device)
        if visible is not None:
            inputs["position_ids"] = batch.position_ids_NS.to(device).repeat(copies, 1)
            inputs["attention_mask"] = self._as_mask(visible).repeat(copies, 1, 1, 1)
        starts_M1 = torch.arange(copies, device=device)[:, None] * batch.input_ids_NS.numel()
        positions_MU = starts_M1 + batch.positions_U.to(device)
        # As in HFLM, so that a surrounding autocast makes no difference here either.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            logits = logits_at(self.model, positions_MU.flatten(), **inputs)
        return logits.unflatten(0, (copies, -1))

    def _as_mask(self, visible: torch.Tensor) -> torch.Tensor:
        if attention_kind(self.config.get_text_config()) == "sdpa":
            return visible
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)

    def _computes_branches(self) -> bool:
        """Whether the model respects custom masks and positions, tested on a small tree."""
        config = self.config.get_text_config()
        kinds = {*(getattr(config, "layer_types", None) or ())}
        kinds |= {*(getattr(config, "attention_layers", None) or ())}  # GPT-Neo's name for them
        if (
            attention_kind(config) not in ("eager", "sdpa")
            or not kinds <= {"full_attention", "global"}
            or getattr(config, "sliding_window", None) is not None
            or not hasattr(config, "hidden_size")
        ):
            return False
        ids = [number % config.vocab_size for number in range(5, 17)]
        requests = [Request(ids[:4], ids[4:8]), Request(ids[:4], ids[8:12])]
        (branched,) = lay_out(requests, True, 1 << 30, 1 << 30)
        (alone,) = lay_out(requests, False, 1, 1 << 30)
        try:
            ours_TV = self._logits_by_request(branched)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error) or is_lost_worker(error):
                raise
            return False
        theirs_TV = self._logits_by_request(alone)
        unmasked_TV = self._logits_by_request(replace(branched, ends_NS=None))
        nowhere = torch.zeros_like(branched.position_ids_NS)
        unplaced_TV = self._logits_by_request(replace(branched, position_ids_NS=nowhere))
        if torch.equal(ours_TV, unplaced_TV):
            return False  # it counts the tokens itself, as ALiBi does, by less than halves round
        rounding = _ROUNDING if self.model.dtype is torch.float32 else _ROUNDING_OF_HALVES
        return bool((ours_TV - theirs_TV).norm() <= rounding * (unmasked_TV - theirs_TV).norm())

    def _logits_by_request(self, batch: Batch) -> torch.Tensor:
        """Logits of a batch's scored tokens, in the order of the requests: (T, V), fp32."""
        scored_TV = self._logits(batch)[0, batch.where_T]
        return scored_TV[batch.requests_T.argsort(stable=True)].float()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As in HFLM, in batches that the workers of a group share."""
        self.batch_size_per_gpu = self._own_batch_size * world_size()
        try:
            texts: list[str] = super().generate_until(requests, disable_tqdm)
        finally:
            self.batch_size_per_gpu = self._own_batch_size
        return texts

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any
    ) -> torch.Tensor:
        """As in HFLM, but each worker of a group continues a part of the batch.

        Where tokens are sampled each continues all parts, as a part draws on the random state of
        those before it.
        """
        is_greedy = not options.get("do_sample") and options.get("num_beams", 1) == 1
        generate = self._generate_greedily if is_greedy else super()._model_generate
        mask_NS, room = options.pop("attention_mask"), max_length - context.shape[1]

        def continuations(rows: slice) -> torch.Tensor:
            width = int(mask_NS[rows].sum(1).max())  # without the padding of longer parts
            own = {"attention_mask": mask_NS[rows, -width:], **options}
            tokens: torch.Tensor = generate(context[rows, -width:], width + room, stop, **own)
            return tokens[:, width:].cpu()

        starts = range(0, len(context), self._own_batch_size)
        parts = [slice(start, start + self._own_batch_size) for start in starts]
        written = divided(parts, continuations) if is_greedy else [*map(continuations, parts)]
        rows = [row for part in written for row in part]
        written_NS = pad_sequence(rows, True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context.cpu(), written_NS], dim=1)

    def _generate_greedily(
        self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any
    ) -> torch.Tensor:
        """As in HFLM, but a batch ends when each of its sequences has met any stop string.

        HFLM continues until the same stop string has appeared in all of them.
        """
        options.pop("temperature", None)
        stopping = StoppingCriteriaList([_OwnStop(self.tokenizer, stop, context.shape[1])])
        with torch.autocast(self.device.type, enabled=False):
            tokens: torch.Tensor = self.model.generate(
                input_ids=context,
                max_length=max_length,
                stopping_criteria=stopping,
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                synced_gpus=world_size() > 1 and _is_sharded(self.model),
                **options | {"do_sample": False},
            )
        return tokens


@contextmanager
def _without_tying(model: Any) -> Iterator[None]:
    """Keep HFLM from tying weights again.

    Adapters on layers that share weights, such as Zamba's, would become one while they train.
    """
    model.tie_weights = lambda: None
    try:
        yield
    finally:
        del model.tie_weights


def _is_sharded(model: torch.nn.Module) -> bool:
    """Whether ZeRO-3 has sharded the parameters, so that a forward pass takes all workers."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


class _OwnStop(StoppingCriteria):
    """Ends each sequence at the first of the stop strings that appears after its prompt."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self._decode: Callable[[Any], list[str]] = tokenizer.batch_decode
        self._stop = stop
        self._prompt_length = prompt_length
        # Other tokens may spell the same text; like the harness, look back two more.
        lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in stop]
        self._look_back = max(lengths, default=0) + 2

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        """Whether each sequence is done, shape (N,)."""
        texts = self._decode(input_ids[:, self._prompt_length :][:, -self._look_back :])
        done = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _cut(request: tuple[Any, list[int], list[int]], max_length: int) -> Request:
    """Truncate a request on the left to what the model can read."""
    texts, context, continuation = request
    if not context or not 0 < len(continuation) <= max_length:
        raise ValueError(
            f"a continuation must be of 1 to {max_length} tokens after a context of at least 1, "
            f"got {len(continuation)} after {len(context)}: {reprlib.repr(texts)}"
        )
    return Request(context[-(max_length + 1 - len(continuation)) :], continuation)
