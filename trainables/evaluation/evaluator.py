"""Evaluation by lm-evaluation-harness: its tasks, its requests, its numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lm_eval.evaluator import evaluate

from trainables import metric_keys
from trainables.config import ROLES, EvalSuite, ModelConfig
from trainables.errors import Fault, UserError, error_with_notes
from trainables.evaluation.harness_model import Answers, HarnessModel, Layouts, Routed
from trainables.evaluation.outcomes import (
    equally_weighted_metrics,
    find_without_answer,
    item_scores,
)
from trainables.evaluation.task_loading import (
    PYTHON_SEED,
    SEED,
    LoadedTask,
    load_tasks,
    question_texts,
    rows_digest,
    seeded,
)
from trainables.evaluation.task_metrics import check_is_a_share, read_score
from trainables.models.chat_date import chat_date_key
from trainables.models.loading import load_tokenizer
from trainables.process.out_of_memory import is_out_of_memory
from trainables.records.schema import ItemScore, TaskScore

# Else the harness forks a pool of processes for the standard errors of some metrics, such as f1,
# and in a Ray worker waits for their end for ever.
os.environ["DISABLE_MULTIPROC"] = "1"

_STDERR_RESAMPLES = 100


@dataclass(frozen=True)
class Evaluation:
    """Scores by task label, flat metrics as logged, every item's outcome, and what is odd."""

    scores: dict[str, TaskScore]
    metrics: dict[str, float]
    items: list[ItemScore]
    warnings: list[str]


class Evaluator:
    """Evaluates models on one suite; tasks, requests and their batches are built once.

    Attributes:
        suite: the tasks.
        tokenizer: of the model to evaluate and of all its tuned copies.

    Raises:
        UserError: tasks that do not exist or cannot be loaded, all of them at once.
    """

    def __init__(self, suite: EvalSuite, tokenizer: Any) -> None:
        self.suite = suite
        self.tokenizer = tokenizer
        self._loaded = load_tasks(suite)
        self._layouts = Layouts()
        self._ahead: WeakKeyDictionary[Any, dict[Hashable, Answers]] = WeakKeyDictionary()

    def models_at_once(self, tokens: int, device: torch.device) -> int:
        """How many models `answer_ahead` can take so that a pass holds at most `tokens` tokens."""
        return self._layouts.copies_in(tokens, device)

    def answer_ahead(self, models: Sequence[Any], routed: Routed) -> None:
        """Answer requests already seen for several models on one base, in shared passes.

        `evaluate`, called next for each of them, finds the answers.

        Args:
            models: share all but some layers, which must not change before `evaluate`.
            routed: called with the rows per model; within it each model's rows use its own layers.
        """
        with evaluating(models[0]):
            lm = HarnessModel(models[0], self.tokenizer, self.suite.batch_size, self._layouts)
            for texts, answers in lm.answer_ahead(len(models), routed):
                for model, own_answers in zip(models, answers, strict=True):
                    self._ahead.setdefault(model, {})[texts] = own_answers

    def evaluate(self, model: Any) -> Evaluation:
        """Run every task; restores the model's training mode.

        The workers of a group share the work; each of them calls this and has all results.

        Raises:
            UserError: tasks give no number that counts as an accuracy; names all of them, and the
                error that ended the evaluation after them.
        """
        faults: list[Fault] = []
        scores: dict[str, TaskScore] = {}
        metrics: dict[str, float] = {}
        items: list[ItemScore] = []
        warnings: list[str] = []
        with evaluating(model):
            answers = self._ahead.pop(model, {})
            lm = HarnessModel(model, self.tokenizer, self.suite.batch_size, self._layouts, answers)
            for loaded in self._loaded:
                try:
                    result = self._run(loaded, lm)
                    score, values = read_score(loaded, result)
                    own_items = item_scores(loaded, result, score)
                    warnings += find_without_answer(loaded, result, score)
                    check_is_a_share(loaded, score, own_items)
                except UserError as error:
                    faults += error.faults
                    continue
                except Exception as error:
                    error.add_note(f"task {loaded.task.label}")
                    if not faults or is_out_of_memory(error):  # which smaller batches may cure
                        raise
                    faults.append(Fault(f"eval.{loaded.role}", f"failed{error_with_notes(error)}"))
                    raise UserError(faults) from error
                scores[loaded.task.label] = score
                metrics |= values
                items += own_items
        if faults:
            raise UserError(faults)
        return Evaluation(scores, metrics | _role_means(scores), items, warnings)

    def questions(self) -> dict[str, list[set[str]]]:
        """What each item asks, by the task's label: its prompt, and the texts in it."""
        return {
            loaded.task.label: [
                question_texts(task, document)
                for task in loaded.tasks["tasks"].values()
                for _, document in task.doc_iterator(limit=self.suite.task_limit(loaded.task))
            ]
            for loaded in self._loaded
        }

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """A digest of what each task reads, by label and member."""
        return {
            loaded.task.label: {n: rows_digest(task) for n, task in loaded.tasks["tasks"].items()}
            for loaded in self._loaded
        }

    def check_rows(self, base_rows: Mapping[str, Mapping[str, str]]) -> None:
        """Check that the tasks read what they read for the base: a hub's data may change.

        Args:
            base_rows: digests as in `rows`.

        Raises:
            UserError: some read something else; names them all.
        """
        remedy = (
            "bring the earlier ones back (the hub's by a `revision` in the task's dataset_kwargs) "
            "and use --retry-failed, or give the sweep another name"
        )
        changed = "have changed since the base was asked"
        labels = {loaded.task.label: loaded.role for loaded in self._loaded}
        faults = [
            Fault(f"eval.{role}", f"the rows of task {label} {changed}", remedy)
            for label, role in labels.items()
            if base_rows.get(label) != self.rows[label]
        ]
        if faults:
            raise UserError(faults)

    def describe(self) -> list[dict[str, Any]]:
        """Everything besides the model that determines the numbers, as plain data."""
        asking: dict[str, Any] = {"chat_template": self.suite.chat_template}
        if self.suite.chat_template:
            asking |= chat_date_key(self.tokenizer)
        if self.suite.system_instruction:
            asking["system_instruction"] = self.suite.system_instruction
        return [*map(self._describe, self._loaded), asking]

    def _describe(self, loaded: LoadedTask) -> dict[str, Any]:
        members, limit = loaded.tasks["tasks"], self.suite.task_limit(loaded.task)
        task: dict[str, Any] = {
            "role": loaded.role,
            "label": loaded.task.label,
            "limit": limit,
            "score": [loaded.task.metric, loaded.task.filter],
            "tasks": {
                name: json.loads(json.dumps(_config(member), default=_described))
                for name, member in members.items()
            },
            "rows": self.rows[loaded.task.label],
        }
        if equally := equally_weighted_metrics(loaded):
            task["equally"] = sorted(equally)
        return task

    def _run(self, loaded: LoadedTask, lm: HarnessModel) -> dict[str, Any]:
        random.seed(PYTHON_SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        result = evaluate(
            lm=lm,
            task_dict=loaded.tasks,
            limit=self.suite.task_limit(loaded.task),
            bootstrap_iters=_STDERR_RESAMPLES,
            log_samples=True,
            system_instruction=self.suite.system_instruction,
            apply_chat_template=self.suite.chat_template,
            fewshot_as_multiturn=self.suite.chat_template,
        )
        assert result is not None  # noqa: S101 - only ranks other than 0 get None
        return dict(result)


def _config(task: Any) -> dict[str, Any]:
    """A task's configuration with its functions and own class, without its file's place."""
    config = dict(task.config.to_dict(keep_callable=True))
    metadata = dict(config.get("metadata") or {})
    metadata.pop("config_source", None)
    if not type(task).__module__.startswith("lm_eval.api."):
        config["class"] = type(task)
    return config | {"metadata": metadata}


def _described(value: object) -> object:
    """What a function or another object does, by its file; the same in all processes."""
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    text = re.sub(r" at 0x[0-9a-f]+", "", str(value))
    for defined in (value, type(value)):
        with suppress(TypeError, OSError):  # not written in Python, or its file is gone
            file = Path(inspect.getsourcefile(inspect.unwrap(defined)) or "")  # type: ignore[arg-type]
            return [text, hashlib.sha256(file.read_bytes()).hexdigest()]
    return text


@lru_cache(maxsize=2)  # a trial that ran out of memory resumes with smaller batches
def shared_evaluator(model: ModelConfig, suite: EvalSuite) -> Evaluator:
    """The process's evaluator for a model's tuned copies, built once for all trials.

    Raises:
        UserError: as for an `Evaluator`.
    """
    return Evaluator(suite, load_tokenizer(model))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, without gradients and without touching the training's random state."""
    was_training = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with seeded(), torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def _role_means(scores: dict[str, TaskScore]) -> dict[str, float]:
    by_role: dict[str, list[float]] = defaultdict(list)
    for score in scores.values():
        by_role[score.role].append(score.value)
    means = {
        metric_keys.role_mean(role): float(np.mean(by_role[role]))
        for role in ROLES
        if by_role[role]
    }
    if by_role["in_domain"] and by_role["ood"]:
        means[metric_keys.OOD_GAP] = means[metric_keys.IN_DOMAIN_ACC] - means[metric_keys.OOD_ACC]
    return means
