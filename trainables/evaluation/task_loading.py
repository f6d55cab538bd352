"""The tasks of a suite, loaded by lm-evaluation-harness and made to build their requests once."""

from __future__ import annotations

import hashlib
import json
import random
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from lm_eval import utils as harness
from lm_eval.tasks import TaskManager

from trainables.compat.lm_eval import filter_names, task_spec
from trainables.config import EvalSuite, EvalTask, Role
from trainables.errors import Fault, UserError, did_you_mean, hub_remedy
from trainables.evaluation.task_errors import (
    Unfit,
    absent_names,
    check_can_be_scored,
    fault_of_unknown,
    place_of,
    why_not_loaded,
)
from trainables.storage.locations import resolve

# The harness's own defaults: Python's, and all others', of which few-shot examples are drawn.
PYTHON_SEED, SEED = 0, 1234
_MOST_ROWS = 10_000  # of a split, that are compared
# What tasks do with one document at a time.
_OF_A_DOCUMENT = ("fewshot_context", "construct_requests", "process_results")
# The harness recompiles a template for each document that it renders.
harness.env.from_string = lru_cache(maxsize=1024)(harness.env.from_string)


@dataclass(frozen=True)
class LoadedTask:
    """A task of the suite, loaded by the harness.

    Attributes:
        role, task: as in the suite.
        tasks: the harness's TaskDict: the task, or a group and all its members.
    """

    role: Role
    task: EvalTask
    tasks: Any


def load_tasks(suite: EvalSuite) -> list[LoadedTask]:
    """Load every task of a suite.

    Raises:
        UserError: tasks that do not exist or cannot be loaded, all of them at once.
    """
    folders = [resolve(folder) for folder in suite.task_dirs]
    absent = [folder for folder in folders if not Path(folder).is_dir()]
    if absent:
        raise UserError([Fault("eval.task_dirs", f"no such folder: {f}") for f in absent])
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(absent_names(task.task, manager.task_index) for _, task in suite.tasks()):
        manager = TaskManager(include_path=folders)
    loaded: list[LoadedTask] = []
    faults: list[Fault] = []
    for role, task in suite.tasks():
        if task.task not in manager.task_index:
            faults.append(fault_of_unknown(role, task.task, list(manager.task_index), folders))
            continue
        try:
            with seeded():
                loaded.append(LoadedTask(role, task, _build(manager, suite, task)))
        except Exception as error:  # a task is a user's own code and data: it may raise anything
            name = f"{task.name} ({task.task})" if task.name else task.task
            rule = f"task {name} cannot be loaded: {why_not_loaded(error)}"
            place = place_of(task, manager.task_index[task.task].yaml_path, folders)
            faults.append(Fault(f"eval.{role}", rule, hub_remedy(error), place))
    if faults:
        raise UserError(faults)
    return loaded


@contextmanager
def seeded() -> Iterator[None]:
    """The harness's own random state for its first task, for each.

    Some shuffle their choices while they are loaded, as GPQA does: each node must ask alike.
    """
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(PYTHON_SEED)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _build(manager: TaskManager, suite: EvalSuite, task: EvalTask) -> Any:
    if absent := absent_names(task.task, manager.task_index):
        names = ", ".join(absent)
        hint = did_you_mean(absent[0], manager.task_index)
        raise Unfit(f"it lists tasks that do not exist: {names}{hint and f'; {hint}'}")
    spec: Any = task.task
    if task.name or task.data_files:
        if manager.task_index[task.task].yaml_path is None:
            raise Unfit("only a single task takes `name` and `data_files`, this is a tag")
        spec = task_spec(manager.task_index[task.task].yaml_path) | {"task": task.label}
        if task.data_files:
            files = {split: resolve(file) for split, file in task.data_files.items()}
            spec["dataset_kwargs"] = {**spec.get("dataset_kwargs", {}), "data_files": files}
    built = manager.load([spec])
    _check_has_one_score(built, task)
    _check_filter(built, task)
    shots = task.num_fewshot if task.num_fewshot is not None else suite.num_fewshot
    for member in built["tasks"].values():
        if getattr(member, "UNSAFE_CODE", False):
            raise Unfit("it runs code that the model has written, which is not done here")
        # As in simple_evaluate: a task that sets 0 itself is never given examples.
        of_member = member.get_config("num_fewshot")
        if task.num_fewshot and of_member == 0:
            raise Unfit(
                f"it is never given examples (num_fewshot: 0), got num_fewshot {task.num_fewshot}"
            )
        if shots is not None and of_member != 0:
            member.set_config(key="num_fewshot", value=shots)
        elif of_member is None:
            member.set_config(key="num_fewshot", value=0)
        check_can_be_scored(member)
        _check_has_examples(member)
        _build_requests_once(member)
    return built


def _check_has_one_score(built: Any, task: EvalTask) -> None:
    """Check that one number stands for the task: its own score, or its group's aggregate."""
    if task.name or task.data_files:
        if set(built["tasks"]) != {task.label}:
            raise Unfit("only a single task takes `name` and `data_files`, this is a group")
    elif task.task in built.get("groups", {}):
        if not built["groups"][task.task].has_aggregation:
            raise Unfit("the group has no aggregate_metric_list; name its tasks one by one")
    elif task.task not in built["tasks"]:
        members = ", ".join(built["tasks"])
        raise Unfit(f"it is a tag without a score of its own; name its tasks: {members}")


def _check_filter(built: Any, task: EvalTask) -> None:
    members = built["tasks"].values()
    filters = [name for member in members for name in filter_names(member)]
    if filters and task.filter is not None and task.filter not in filters:
        known = " or ".join(dict.fromkeys(filters))
        raise Unfit(f"its filter must be {known}, got {task.filter}")


def _check_has_examples(member: Any) -> None:
    """Check that there are as many examples to show as are asked for.

    Where they are drawn from the questions themselves, the harness may take one more.
    """
    shots = member.get_config("num_fewshot")
    documents = member.fewshot_docs() if shots else None
    if isinstance(documents, Sized) and len(documents) < shots:
        raise Unfit(f"num_fewshot must be at most its {len(documents)} examples, got {shots}")


@seeded()
def documents_digest(task: Any, limit: int | None) -> str:
    """Digest of the documents that a task asks about and of those it shows as examples.

    A task's own description only names the files they come from, whatever these contain.
    """
    documents = [document for _, document in task.doc_iterator(limit=limit)]
    if task.get_config("num_fewshot"):
        documents += task.fewshot_docs()
    return _digest(documents)


def rows_digest(task: Any) -> str:
    """Digest of what a task reads to make its documents of, and the examples that it shows.

    Its own code may make others in each process, as GPQA's shuffles choices anew; what it reads is
    alike. Of each split that is the number of rows and the first 10,000, without images.
    """
    config = task.config
    splits = {config.test_split or config.validation_split}
    if config.num_fewshot:
        splits.add(config.fewshot_split or config.training_split or config.validation_split)
    data = {} if config.custom_dataset else task.dataset  # it makes its own
    rows: list[Any] = []
    for split in sorted(filter(None, splits)):
        if isinstance(read := data.get(split), Dataset):
            texts = [n for n, kind in read.features.items() if not hasattr(kind, "decode_example")]
            rows += [[split, len(read)], *read.select_columns(texts).take(_MOST_ROWS)]
    return _digest(rows)


def _digest(documents: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        # What JSON cannot represent, such as an image, counts by its type: it has no stable text.
        plain = json.dumps(document, sort_keys=True, default=lambda value: type(value).__name__)
        digest.update(plain.encode())
    return digest.hexdigest()[:16]


def questions_of(task: Any, document: dict[str, Any]) -> set[str]:
    """A document's prompt, and the fields of text that it shows; none of one that is no text."""
    prompt: Any = None
    with suppress(Exception):  # the user's code; the evaluation says what is wrong with it
        prompt = task.doc_to_text(document)
    if not isinstance(prompt, str):
        return set()
    texts = (value for value in document.values() if isinstance(value, str))
    return {prompt, *(text for text in texts if text in prompt)}


def _build_requests_once(task: Any) -> None:
    """Make a task keep its requests and documents, which are the same at every evaluation."""
    build = task.build_all_requests

    def build_and_keep(**options: Any) -> None:
        task.set_fewshot_seed(seed=SEED)
        documents = list(task.doc_iterator(limit=options["limit"]))
        for name in _OF_A_DOCUMENT:
            setattr(task, name, _naming_documents(getattr(task, name), documents))
        build(**options)
        drawn_so_far = random.getstate(), np.random.get_state()

        def renew(**options: Any) -> None:
            for request in task.instances:
                request.resps, request.filtered_resps = [], {}
            random.setstate(drawn_so_far[0])
            np.random.set_state(drawn_so_far[1])

        task.build_all_requests = renew
        # Copies, since a task's own code may write into them.
        task.doc_iterator = lambda **options: ((number, dict(doc)) for number, doc in documents)

    task.build_all_requests = build_and_keep


def _naming_documents(work: Callable[..., Any], documents: list[tuple[int, Any]]) -> Any:
    """Make the errors of work on a document say which one it is."""

    def naming(*arguments: Any, **options: Any) -> Any:
        document = arguments[0] if arguments else options["doc"]
        try:
            return work(*arguments, **options)
        except Exception as error:
            text = repr(document)
            number = next((number for number, known in documents if repr(known) == text), None)
            error.add_note(document_note(number, document))
            raise

    return naming


def document_note(number: int | None, document: Any) -> str:
    """Which document an error is of, for its notes, with the beginnings of its fields."""
    which = "a document" if number is None else f"document {number + 1}"
    return f"{which} {reprlib.repr(document)}"
