"""Evaluation by lm-evaluation-harness: its tasks, its requests, its numbers."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from trainables import metric_keys
from trainables.config import ROLES, EvalSuite, EvalTask, Role
from trainables.errors import Fault, UserError
from trainables.locations import resolve
from trainables.records import ItemScore, TaskScore

# The harness's own default seeds; few-shot examples are drawn from the last one.
_PYTHON_SEED = 0
_SEED = 1234
_PREFERRED_METRICS = ("acc", "exact_match", "mcq_acc", "em", "f1", "bleu")
_STDERR_RESAMPLES = 100


@dataclass(frozen=True)
class Evaluation:
    """Scores by task label, flat metrics as logged, and every item's outcome."""

    scores: dict[str, TaskScore]
    metrics: dict[str, float]
    items: list[ItemScore]


class Evaluator:
    """Evaluates models on one suite; the tasks are loaded once and used again.

    Raises:
        UserError: tasks that do not exist or cannot be loaded, all at once.
    """

    def __init__(self, suite: EvalSuite, tokenizer: Any) -> None:
        self._suite = suite
        self._tokenizer = tokenizer
        self._loaded = _load_tasks(suite)

    def evaluate(self, model: Any) -> Evaluation:
        """Run every task; leaves the model's training mode as it was."""
        scores: dict[str, TaskScore] = {}
        metrics: dict[str, float] = {}
        items: list[ItemScore] = []
        with evaluating(model):
            for loaded in self._loaded:
                try:
                    result = self._run(loaded, model)
                except Exception as error:
                    error.add_note(f"task {loaded.task.label}")
                    raise
                score, values = _read_score(loaded, result)
                scores[loaded.task.label] = score
                metrics |= values
                items += _read_items(loaded, result, score)
        return Evaluation(scores, metrics | _role_means(scores), items)

    def describe(self) -> list[dict[str, Any]]:
        """Everything that decides the numbers besides the model, as plain data."""
        return [
            {
                "role": loaded.role,
                "label": loaded.task.label,
                "limit": loaded.limit(self._suite),
                "tasks": {
                    name: json.loads(json.dumps(task.dump_config(), default=str))
                    for name, task in loaded.tasks["tasks"].items()
                },
            }
            for loaded in self._loaded
        ] + [{"chat_template": self._suite.chat_template}]

    def _run(self, loaded: _LoadedTask, model: Any) -> dict[str, Any]:
        random.seed(_PYTHON_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        for task in loaded.tasks["tasks"].values():  # else it goes on drawing other examples
            task.set_fewshot_seed(seed=_SEED)
        lm = HFLM(pretrained=model, tokenizer=self._tokenizer, batch_size=self._suite.batch_size)
        result = evaluate(
            lm=lm,
            task_dict=loaded.tasks,
            limit=loaded.limit(self._suite),
            bootstrap_iters=_STDERR_RESAMPLES,
            log_samples=True,
            apply_chat_template=self._suite.chat_template,
            fewshot_as_multiturn=self._suite.chat_template,
        )
        assert result is not None  # noqa: S101 - only ranks other than 0 get None
        return dict(result)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, without gradients and without touching the training's random state."""
    was_training = model.training
    state, python_state = np.random.get_state(), random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(state)
        model.train(was_training)


@dataclass(frozen=True)
class _LoadedTask:
    role: Role
    task: EvalTask
    tasks: Any  # the harness's TaskDict: the task, or a group and all its members

    def limit(self, suite: EvalSuite) -> int | None:
        return self.task.limit if self.task.limit is not None else suite.limit


def _load_tasks(suite: EvalSuite) -> list[_LoadedTask]:
    folders = [resolve(folder) for folder in suite.task_dirs]
    absent = [folder for folder in folders if not Path(folder).is_dir()]
    if absent:
        raise UserError([Fault("eval.task_dirs", f"no such folder: {f}") for f in absent])
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(task.task not in manager.task_index for _, task in suite.tasks()):
        manager = TaskManager(include_path=folders)
    loaded: list[_LoadedTask] = []
    faults: list[Fault] = []
    for role, task in suite.tasks():
        if task.task not in manager.task_index:
            faults.append(_unknown_task(role, task.task, list(manager.task_index), folders))
            continue
        try:
            loaded.append(_LoadedTask(role, task, _build(manager, suite, task)))
        except Exception as error:  # a task is a user's own code and data: anything may come
            faults.append(Fault(f"eval.{role}", f"task {task.task} cannot be loaded: {error}"))
    if faults:
        raise UserError(faults)
    return loaded


def _unknown_task(role: Role, name: str, known: list[str], folders: list[str]) -> Fault:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "see `lm-eval ls tasks` for the harness's own"
    where = f"{', '.join(folders)} or the harness" if folders else "the harness"
    return Fault(f"eval.{role}", f"no task named {name} in {where}", hint)


def _build(manager: TaskManager, suite: EvalSuite, task: EvalTask) -> Any:
    spec: Any = task.task
    if task.name or task.data_files:
        spec = dict(load_yaml(manager.task_index[task.task].yaml_path)) | {"task": task.label}
        if task.data_files:
            files = {split: resolve(file) for split, file in task.data_files.items()}
            spec["dataset_kwargs"] = {**spec.get("dataset_kwargs", {}), "data_files": files}
    built = manager.load([spec])
    _check_has_one_score(built, task)
    shots = task.num_fewshot if task.num_fewshot is not None else suite.num_fewshot
    for member in built["tasks"].values():
        # As simple_evaluate does: a task that says 0 itself is never given examples.
        if shots is not None and member.get_config("num_fewshot") != 0:
            member.set_config(key="num_fewshot", value=shots)
        elif member.get_config("num_fewshot") is None:
            member.set_config(key="num_fewshot", value=0)
    return built


def _check_has_one_score(built: Any, task: EvalTask) -> None:
    """See that one number will stand for the task: a task's own, or its group's aggregate."""
    if task.name or task.data_files:
        if set(built["tasks"]) != {task.label}:
            raise ValueError("only a single task takes `name` and `data_files`, this is a group")
    elif task.task in built.get("groups", {}):
        if not built["groups"][task.task].has_aggregation:
            raise ValueError("the group has no aggregate_metric_list; name its tasks one by one")
    elif task.task not in built["tasks"]:
        members = ", ".join(built["tasks"])
        raise ValueError(f"it is a tag without a score of its own; name its tasks: {members}")


def _read_score(loaded: _LoadedTask, result: dict[str, Any]) -> tuple[TaskScore, dict[str, float]]:
    """The task's accuracy, and all its numeric metrics under our keys."""
    label = loaded.task.label
    by_name = {**result["results"], **result.get("groups", {})}
    values = by_name[label] if label in by_name else by_name[loaded.task.task]
    found: dict[tuple[str, str], float] = {}
    errors: dict[tuple[str, str], float] = {}
    for key, value in values.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or not _is_number(value):
            continue
        if metric.endswith("_stderr"):
            errors[metric.removesuffix("_stderr"), filter_name] = float(value)
        else:
            found[metric, filter_name] = float(value)
    metric, filter_name = _choose(loaded.task, list(found))
    metrics = {
        metric_keys.task_score(loaded.role, label, name): value
        for (name, used_filter), value in found.items()
        if used_filter == filter_name
    }
    stderr = errors.get((metric, filter_name))
    if stderr is not None:
        metrics[metric_keys.task_score(loaded.role, label, f"{metric}_stderr")] = stderr
    counts = [
        _count_choices(task, sample) for task, sample in _samples(loaded, result, filter_name)
    ]
    choices = [count for count in counts if count is not None]
    score = TaskScore(
        role=loaded.role,
        metric=metric,
        filter=filter_name,
        value=found[metric, filter_name],
        stderr=stderr,
        chance=float(np.mean([1 / count if count else 0.0 for count in counts])),
        choices=float(np.mean(choices)) if choices else None,
        items=len(counts),
    )
    return score, metrics


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not math.isnan(float(value))


def _choose(task: EvalTask, found: list[tuple[str, str]]) -> tuple[str, str]:
    names = [metric for metric, _ in found]
    preferred = [name for name in (task.metric, *_PREFERRED_METRICS) if name in names]
    metric = preferred[0] if preferred else (names[0] if names else "")
    filters = [name for known, name in found if known == metric]
    filter_name = task.filter or (filters[0] if filters else "")
    if (task.metric and metric != task.metric) or (metric, filter_name) not in found:
        known = ", ".join(f"{name} (filter {used})" for name, used in found) or "no number"
        wanted = f"{task.metric or metric} (filter {filter_name})"
        raise UserError([Fault("eval", f"task {task.task} gives no {wanted}", f"it gives {known}")])
    return metric, filter_name


def _samples(
    loaded: _LoadedTask, result: dict[str, Any], filter_name: str
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each document's sample under one filter, with its task."""
    for name, task in loaded.tasks["tasks"].items():
        for sample in result["samples"][name]:
            if sample["filter"] == filter_name:
                yield task, sample


def _count_choices(task: Any, sample: dict[str, Any]) -> int | None:
    """Listed answers; None where the answer is generated."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    # Mutual information also asks for each answer without the question.
    twice = "acc_mutual_info" in sample["metrics"]
    return len(sample["arguments"]) // (2 if twice else 1)


def _read_items(loaded: _LoadedTask, result: dict[str, Any], score: TaskScore) -> list[ItemScore]:
    return [
        ItemScore(
            task=loaded.task.label,
            doc_hash=sample["doc_hash"],
            filter=sample["filter"],
            score=float(sample[score.metric]),
            prompt=str(sample["arguments"][0][0]),
            target=_target_text(task, sample),
            answer=_answer_text(task, sample),
        )
        for task, sample in _samples(loaded, result, score.filter)
        if _is_number(sample.get(score.metric))
    ]


def _target_text(task: Any, sample: dict[str, Any]) -> str:
    target = sample["target"]
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(target, int):
        return str(sample["arguments"][target][1]).strip()
    return str(target)


def _answer_text(task: Any, sample: dict[str, Any]) -> str:
    count = _count_choices(task, sample)
    if count is not None:
        likelihoods = [float(response[0]) for response in sample["filtered_resps"][:count]]
        return str(sample["arguments"][int(np.argmax(likelihoods))][1]).strip()
    return str(sample["filtered_resps"][0])


def _role_means(scores: dict[str, TaskScore]) -> dict[str, float]:
    by_role: dict[str, list[float]] = defaultdict(list)
    for score in scores.values():
        by_role[score.role].append(score.value)
    means = {
        metric_keys.role_mean(role): float(np.mean(by_role[role]))
        for role in ROLES
        if by_role[role]
    }
    if by_role["ood"]:
        means[metric_keys.OOD_GAP] = means[metric_keys.IN_DOMAIN_ACC] - means[metric_keys.OOD_ACC]
    return means
