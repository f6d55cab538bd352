"""The untouched base model's evaluation: computed once per content, read by every trial.

A folder holds `base.json` (scores), `items.jsonl` (every item's outcome) and, where KL drift is
measured, `kl_reference.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from trainables.config import DataConfig, EvalSuite, LoraConfig, ModelConfig
from trainables.errors import Fault, UserError, first_line
from trainables.evaluation.data_warnings import data_warnings
from trainables.evaluation.drift import (
    KlReference,
    general_nll,
    kl_context,
    kl_drift,
    sample_reference,
    token_nll,
)
from trainables.evaluation.evaluator import Evaluation, Evaluator, shared_evaluator
from trainables.evaluation.forgetting import (
    forgetting_metrics,
    is_at_chance,
    is_below_chance,
)
from trainables.evaluation.overlap import overlap_warnings
from trainables.evaluation.vocabulary import check_data, only_embedded
from trainables.files.disk import flush
from trainables.inputs.adaptable import check_adaptable
from trainables.inputs.data import TokenizedData, tokenize, typical_sample
from trainables.inputs.lora_reach import left_by_lora
from trainables.inputs.model import fingerprint, load_tokenizer, pinned, shared_base
from trainables.inputs.rows import read_general_text
from trainables.inputs.tokenized import write_data
from trainables.metric_keys import (
    FORGETTING_NLL,
    KL_BASE_TO_TUNED,
    RETENTION_RATIO,
    VALIDATION_LOSS,
)
from trainables.process.out_of_memory import is_out_of_memory
from trainables.records.items import read_items, write_items
from trainables.records.schema import BASE_ITEMS, BASE_RECORD, BaseRecord, ItemScore

_KL_REFERENCE = "kl_reference.safetensors"
# Bump when this code would no longer produce the record of an old cache entry.
_CACHE_VERSION = 11
T = TypeVar("T")


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
    data_folder: Path | None = None,
    adapters: Sequence[LoraConfig] = (),
    recomputes: bool = False,
) -> Path:
    """Evaluate the base model, or find its evaluation in the cache; returns its folder.

    Loads all that a trial will need, so that any fault in model, data or tasks shows here, before a
    trial is spent. If `data_folder` is given, the tokenised data are written to it. `adapters` are
    those that the trials will put on it; `recomputes`, whether they recompute its activations.

    Raises:
        UserError: every fault found in model, data, tasks and adapters.
    """
    model = pinned(model)
    tokenizer, evaluator, tokenized = _load_all(model, data, suite, seed, adapters, recomputes)
    base, _ = shared_base(model)
    check_data(base, tokenizer, tokenized)
    prompts = tokenized.prompts[: suite.kl_prompts]
    # Of a suite with in-domain tasks, their accuracy tells what is learned.
    held_out = [] if suite.in_domain else tokenized.validation
    if data_folder is not None:
        write_data(replace(tokenized, prompts=prompts, questions=()), data_folder)
    documents = _general_documents(suite, tokenizer)
    contexts = [kl_context(tokenizer, prompt) for prompt in prompts]
    sampled = [seed, suite.kl_tokens, *contexts] if prompts else []
    content = _content(model, base, tokenizer, evaluator, documents)
    # The record also holds the sample counts, a sample, and what is told of the data.
    counts = len(tokenized.train), len(tokenized.validation), tokenized.skipped
    own = len(tokenized.train) - tokenized.replayed
    shown = typical_sample(tokenizer, tokenized.train[:own])
    of_data = data_warnings(base, tokenizer, tokenized, data, suite)
    of_data += overlap_warnings(tokenized, evaluator.questions())
    samples = [*counts, tokenized.replayed_tokens, data.max_length, shown.model_dump(), of_data]
    batch = {"batch_size": suite.batch_size}  # changes scores only by rounding
    of_record = {"cache": _CACHE_VERSION, "kl": sampled, "samples": samples}
    of_record |= {"held_out": held_out} if held_out else {}
    key = _key(content | batch | of_record)
    folder = cache / key
    if folder.exists():
        return folder
    started = time.time()  # what is loaded, or fetched, before is not evaluated
    with only_embedded(base, tokenizer):
        evaluation = evaluator.evaluate(base)
        reference = (
            sample_reference(base, tokenizer, prompts, suite.kl_tokens, suite.batch_size, seed)
            if prompts
            else None
        )
        nll = general_nll(base, tokenizer, documents, suite.batch_size) if documents else None
        loss = token_nll(base, held_out, suite.batch_size) if held_out else None
    record = BaseRecord(
        key=key,
        scores_key=_key(content),
        revision=model.revision,
        scores=evaluation.scores,
        metrics=_base_metrics(evaluation, reference, nll, loss),
        general_nll=nll,
        parameters=base.num_parameters(),
        train_samples=len(tokenized.train),
        validation_samples=len(tokenized.validation),
        skipped_samples=tokenized.skipped,
        replayed_tokens=tokenized.replayed_tokens,
        seconds=time.time() - started,
        sample=shown,
        warnings=(*of_data, *_warnings(base, evaluation)),
    )
    _store(folder, record, evaluation.items, reference)
    return folder


def _load_all(
    model: ModelConfig,
    data: DataConfig,
    suite: EvalSuite,
    seed: int,
    adapters: Sequence[LoraConfig],
    recomputes: bool,
) -> tuple[Any, Evaluator, TokenizedData]:
    """Load tokenizer, base, tasks and data, collecting the faults of all of them."""
    faults: list[Fault] = []

    def attempt(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except UserError as error:
            faults.extend(error.faults)
        except ModuleNotFoundError as error:
            faults.append(Fault("model.name", str(error)))
        return None

    tokenizer = attempt(lambda: load_tokenizer(model))
    if tokenizer is not None:
        attempt(lambda: check_base(model, adapters, recomputes))
        attempt(lambda: _check_chat_template(tokenizer, model, data, suite))
    # Trials of this process use it too; without a tokenizer, task faults are still reported.
    evaluator = attempt(
        lambda: shared_evaluator(model, suite) if tokenizer else Evaluator(suite, tokenizer)
    )
    can_render = tokenizer and (tokenizer.chat_template or not data.has_chats)
    tokenized = attempt(lambda: tokenize(data, tokenizer, seed)) if can_render else None
    if tokenized is not None and not (suite.in_domain or tokenized.validation):
        faults.append(_fault_of_unmeasured(data))
    if faults or tokenizer is None or evaluator is None or tokenized is None:
        raise UserError(faults)
    return tokenizer, evaluator, tokenized


def _fault_of_unmeasured(data: DataConfig) -> Fault:
    """Of data without held-out rows, where no in-domain task tells what is learned."""
    why = "as eval.in_domain has no tasks"
    if data.validation_path:
        rule = f"must hold rows of at most {data.max_length} tokens, {why}"
        return Fault("data.validation_path", rule, "name another, or raise data.max_length")
    rule = f"must hold out at least one row, {why}, got {data.validation_fraction:g}"
    return Fault("data.validation_fraction", rule, "raise it, or name a data.validation_path")


def check_base(model: ModelConfig, adapters: Sequence[LoraConfig], recomputes: bool) -> None:
    """Load the base model shared by this process, and check what the trials will ask of it.

    Raises:
        UserError: loading fails, or runs out of memory, which no smaller batch would change; or the
            base does not take the adapters, or cannot recompute.
    """
    try:
        check_adaptable(shared_base(model)[0], adapters, recomputes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        rule = (
            f"memory runs out as {model.name} is loaded, whole, into one process, which evaluates "
            f"the base: {first_line(error)}"
        )
        remedy = "take a smaller model or larger GPUs"
        raise UserError([Fault("model.name", rule, remedy)]) from None


def _check_chat_template(
    tokenizer: Any, model: ModelConfig, data: DataConfig, suite: EvalSuite
) -> None:
    of_data = "data.messages" if data.messages else "data.chat_template"
    asking = {of_data: data.is_chat, "eval.chat_template": suite.chat_template}
    asking["data.replay"] = data.replay is not None and data.replay.is_chat
    fields = [field for field, is_asked in asking.items() if is_asked]
    if fields and tokenizer.chat_template is None:
        rule = f"the tokenizer of {model.name} has no chat template"
        remedy = "leave it out, set model.chat_template, or take a model that was tuned to chat"
        raise UserError([Fault(field, rule, remedy) for field in fields])


def _general_documents(suite: EvalSuite, tokenizer: Any) -> list[str]:
    if suite.general_text is None:
        return []
    documents = read_general_text(suite.general_text)
    if all(len(tokenizer(text)["input_ids"]) < 2 for text in documents):
        rule = f"must hold a text of two tokens or more, has none: {suite.general_text}"
        remedy = "give longer texts: each token is predicted from those before it"
        raise UserError([Fault("eval.general_text", rule, remedy)])
    return documents


def _content(
    model: ModelConfig, base: Any, tokenizer: Any, evaluator: Evaluator, documents: Sequence[str]
) -> dict[str, object]:
    """What determines the base's scores, beside this code: let a change of them change this."""
    return {
        "model": fingerprint(model),
        "dtype": model.dtype,
        **({"load_in_4bit": True} if model.load_in_4bit else {}),
        "attention": base.config.get_text_config()._attn_implementation,
        "chat_template_args": model.chat_template_args,
        **({"eos_token": model.eos_token} if model.eos_token is not None else {}),
        **({"chat_template": tokenizer.chat_template} if model.chat_template is not None else {}),
        "tasks": evaluator.describe(),
        "general": list(documents),
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")},
    }


def _key(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _base_metrics(
    evaluation: Evaluation, reference: KlReference | None, nll: float | None, loss: float | None
) -> dict[str, float]:
    """What the base's own W&B run shows: its scores, with drift and forgetting of zero."""
    metrics = evaluation.metrics | forgetting_metrics(
        evaluation.scores, evaluation.scores, evaluation.items, evaluation.items
    )
    if reference is not None:
        metrics[KL_BASE_TO_TUNED] = 0.0
    if nll is not None:
        metrics[FORGETTING_NLL] = 0.0
    if loss is not None:
        metrics[VALIDATION_LOSS] = loss
    return metrics


def _warnings(base: Any, evaluation: Evaluation) -> Iterator[str]:
    yield from evaluation.warnings
    for label, score in evaluation.scores.items():
        if score.role == "retention" and is_at_chance(score):
            where = (
                f"below chance ({score.chance:.3f}): look at its answers and prompt"
                if is_below_chance(score)
                else f"at chance ({score.chance:.3f}) within two standard errors"
            )
            yield (
                f"retention task {label}: the base scores {score.value:.3f}, {where}; it cannot "
                f"show forgetting, and {RETENTION_RATIO} leaves it out unless all are"
            )
    if left := left_by_lora(base):
        yield left


def _store(
    folder: Path, record: BaseRecord, items: list[ItemScore], reference: KlReference | None
) -> None:
    """Write to a temporary folder, then rename: a half-written entry is never found."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix=".unfinished-", dir=folder.parent))
    unfinished.chmod(0o755)  # workers may run as other users
    (unfinished / BASE_RECORD).write_text(record.model_dump_json(indent=2))
    write_items(unfinished / BASE_ITEMS, items)
    if reference is not None:
        reference.save(unfinished / _KL_REFERENCE)
    for path in (*unfinished.iterdir(), unfinished):
        flush(path)  # it is kept for all sweeps to come
    try:
        unfinished.replace(folder)
    except OSError:  # another sweep has created the same entry meanwhile
        shutil.rmtree(unfinished)
        if not folder.exists():
            raise


def compare_with_base(
    base: Base,
    model: object,
    tokenizer: object,
    evaluator: Evaluator,
    suite: EvalSuite,
    workers: int,
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluate a tuned model; returns the evaluation and every metric, including drift.

    `workers`: number that share the work; each of them calls this and has all results.
    """
    evaluation = evaluator.evaluate(model, workers)
    metrics = evaluation.metrics | forgetting_metrics(
        base.record.scores, evaluation.scores, base.items, evaluation.items
    )
    if base.kl_reference is not None:
        metrics[KL_BASE_TO_TUNED] = kl_drift(model, base.kl_reference, suite.batch_size, workers)
    if base.record.general_nll is not None:
        documents = _general_documents(suite, tokenizer)
        nll = general_nll(model, tokenizer, documents, suite.batch_size, workers)
        metrics[FORGETTING_NLL] = nll - base.record.general_nll
    return evaluation, metrics
