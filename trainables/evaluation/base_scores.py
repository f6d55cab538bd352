"""The untouched base model's evaluation: computed once per content, read by every trial.

A folder holds `base.json` (scores), `items.jsonl` (every item's outcome) and, where KL drift is
measured, `kl_reference.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainables.config import BaseRequirements, DataConfig, EvalSuite, ModelConfig
from trainables.data.dataset import Sample, typical_sample
from trainables.data.tokenized import write_data
from trainables.evaluation.base_inputs import BaseInputs, general_documents, load_inputs
from trainables.evaluation.data_warnings import data_warnings, overlap_warnings
from trainables.evaluation.drift import (
    KlReference,
    general_nll,
    kl_context,
    kl_drift,
    sample_reference,
    token_nll,
)
from trainables.evaluation.evaluator import Evaluation, Evaluator
from trainables.evaluation.forgetting import forgetting_metrics, is_at_chance
from trainables.metric_keys import (
    FORGETTING_NLL,
    KL_BASE_TO_TUNED,
    RETENTION_RATIO,
    VALIDATION_LOSS,
)
from trainables.records.item_records import read_items, write_items
from trainables.records.schema import BASE_ITEMS, BASE_RECORD, BaseRecord, ItemScore, SampleText
from trainables.storage.disk import flush, give_usual_modes

_KL_REFERENCE = "kl_reference.safetensors"
# Bump when this code would no longer produce the record of an old cache entry.
_CACHE_VERSION = 20


@dataclass(frozen=True)
class Base:
    """What trials are compared with."""

    record: BaseRecord
    items: list[ItemScore]
    kl_reference: KlReference | None

    @classmethod
    def load(cls, folder: Path) -> Base:
        """Read a folder written by `evaluate_base`."""
        reference = folder / _KL_REFERENCE
        return cls(
            BaseRecord.model_validate_json((folder / BASE_RECORD).read_bytes()),
            read_items(folder / BASE_ITEMS),
            KlReference.load(reference) if reference.exists() else None,
        )


def evaluate_base(
    model: ModelConfig,
    data: DataConfig,
    suite: EvalSuite,
    seed: int,
    cache: Path,
    data_folder: Path,
    requirements: BaseRequirements,
) -> Path:
    """Evaluate the base model, or find its evaluation in the cache; returns its folder.

    The tokenised data are written to `data_folder`.

    Raises:
        UserError: every fault found in model, data, tasks and requirements.
    """
    inputs = load_inputs(model, data, suite, seed, requirements)
    tokenized = inputs.tokenized
    write_data(replace(tokenized, questions=()), data_folder)
    warnings = data_warnings(inputs.base, inputs.tokenizer, tokenized, data, suite)
    warnings += overlap_warnings(tokenized, inputs.evaluator.questions())
    own_rows = tokenized.train[: len(tokenized.train) - tokenized.replayed]
    sample, scored = typical_sample(inputs.tokenizer, own_rows), inputs.score_inputs()
    key = _key(scored | _record_inputs(inputs, data, seed, sample, warnings))
    folder = cache / key
    if folder.exists():
        return folder
    started = time.time()  # loading and fetching does not count as evaluation
    evaluation, reference, nll = _measure(inputs, seed)
    record = BaseRecord(
        key=key,
        scores_key=_key(scored),
        rows=inputs.evaluator.rows,
        revision=inputs.model.revision,
        scores=evaluation.scores,
        metrics=evaluation.metrics,
        general_nll=nll,
        parameters=inputs.base.num_parameters(),
        train_samples=len(tokenized.train),
        validation_samples=len(tokenized.validation),
        skipped_samples=tokenized.skipped,
        replayed_tokens=tokenized.replayed_tokens,
        seconds=time.time() - started,
        sample=sample,
        warnings=(*warnings, *_warnings(inputs.base, evaluation)),
    )
    _store(folder, record, evaluation.items, reference)
    return folder


def _held_out(inputs: BaseInputs) -> list[Sample]:
    """What the base's loss is measured on: none where in-domain tasks show what is learned."""
    return [] if inputs.evaluator.suite.in_domain else inputs.tokenized.validation


def _record_inputs(
    inputs: BaseInputs, data: DataConfig, seed: int, sample: SampleText, warnings: Sequence[str]
) -> dict[str, object]:
    """What determines the record beside the scores: counts, a sample, warnings and drift."""
    suite, tokenized, prompts = inputs.evaluator.suite, inputs.tokenized, inputs.tokenized.prompts
    contexts = [kl_context(inputs.tokenizer, prompt) for prompt in prompts]
    counts = len(tokenized.train), len(tokenized.validation), tokenized.skipped
    samples = [*counts, tokenized.replayed_tokens, data.max_length, sample.model_dump(), warnings]
    return {
        "batch_size": suite.batch_size,  # changes scores only by rounding
        "cache": _CACHE_VERSION,
        "kl_reference": [seed, suite.kl_tokens, *contexts] if prompts else [],
        "samples": samples,
        "held_out": _held_out(inputs),
    }


def _measure(inputs: BaseInputs, seed: int) -> tuple[Evaluation, KlReference | None, float | None]:
    """The base's evaluation, its KL reference and its loss on general text.

    The latter two are None if not measured. The metrics include drift and forgetting of zero.
    """
    base, tokenizer, suite = inputs.base, inputs.tokenizer, inputs.evaluator.suite
    prompts, documents, size = inputs.tokenized.prompts, inputs.documents, suite.batch_size
    held_out = _held_out(inputs)
    reference = nll = None
    evaluation = inputs.evaluator.evaluate(base)
    scores, items = evaluation.scores, evaluation.items
    metrics = evaluation.metrics | forgetting_metrics(scores, scores, items, items)
    if prompts:
        reference = sample_reference(base, tokenizer, prompts, suite.kl_tokens, size, seed)
        metrics[KL_BASE_TO_TUNED] = 0.0
    if documents:
        nll = general_nll(base, tokenizer, documents, size)
        metrics[FORGETTING_NLL] = 0.0
    if held_out:
        metrics[VALIDATION_LOSS] = token_nll(base, held_out, size)
    return replace(evaluation, metrics=metrics), reference, nll


def _key(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _warnings(base: Any, evaluation: Evaluation) -> Iterator[str]:
    yield from evaluation.warnings
    for label, score in evaluation.scores.items():
        if score.role == "retention" and is_at_chance(score):
            yield (
                f"retention task {label}: the base scores {score.value:.3f}, which is not two "
                f"standard errors above chance ({score.chance:.3f}); it cannot show forgetting, "
                f"and {RETENTION_RATIO} leaves it out unless all are"
            )


def _store(
    folder: Path, record: BaseRecord, items: list[ItemScore], reference: KlReference | None
) -> None:
    """Write to a temporary folder, then rename: a half-written entry is never found."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".unfinished-{uuid4().hex}")
    unfinished.mkdir()
    (unfinished / BASE_RECORD).write_text(record.model_dump_json(indent=2))
    write_items(unfinished / BASE_ITEMS, items)
    if reference is not None:
        reference.save(unfinished / _KL_REFERENCE)
    give_usual_modes(unfinished)
    for path in (*unfinished.iterdir(), unfinished):
        flush(path)  # it is kept for all sweeps to come
    try:
        unfinished.replace(folder)
    except OSError:  # another sweep has created the same entry meanwhile
        shutil.rmtree(unfinished)
        if not folder.exists():
            raise


def compare_with_base(
    base: Base, model: object, evaluator: Evaluator
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluate a tuned model; returns the evaluation and every metric, including drift.

    The workers of a group share the work; each of them calls this and has all results.
    """
    suite, tokenizer = evaluator.suite, evaluator.tokenizer
    evaluation = evaluator.evaluate(model)
    metrics = evaluation.metrics | forgetting_metrics(
        base.record.scores, evaluation.scores, base.items, evaluation.items
    )
    if base.kl_reference is not None:
        metrics[KL_BASE_TO_TUNED] = kl_drift(model, base.kl_reference, suite.batch_size)
    if base.record.general_nll is not None:
        nll = general_nll(model, tokenizer, general_documents(suite), suite.batch_size)
        metrics[FORGETTING_NLL] = nll - base.record.general_nll
    return evaluation, metrics
