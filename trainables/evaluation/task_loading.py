"""The tasks of a suite, loaded by lm-evaluation-harness and made to build their requests once."""

from __future__ import annotations

import hashlib
import json
import random
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from lm_eval import utils as harness
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from trainables.compat.lm_eval import task_spec
from trainables.config import EvalSuite, EvalTask, Role
from trainables.errors import Fault, UserError, did_you_mean, hub_remedy
from trainables.evaluation.task_errors import UnusableTask, place_of, unknown_task, why_not_loaded
from trainables.storage.locations import resolve

# The harness's own defaults: Python's, and all others', of which few-shot examples are drawn.
PYTHON_SEED, SEED = 0, 1234
_MOST_ROWS = 50_000  # of a split, that are compared
# What tasks do with one document at a time.
_PER_DOCUMENT = ("fewshot_context", "construct_requests", "process_results")
_FILE_READERS = ("json", "csv", "parquet")  # of `datasets`, by their name as a dataset_path
# Keys of a group's member by which it is a task of its own, written out in the group.
_DATA_KEYS = {"dataset_path", "custom_dataset", "class", "include"}
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
    if any(_missing_tasks(task.task, manager) for _, task in suite.tasks()):
        manager = TaskManager(include_path=folders)
    loaded: list[LoadedTask] = []
    faults: list[Fault] = []
    for role, task in suite.tasks():
        if task.task not in manager.task_index:
            faults.append(unknown_task(role, task.task, list(manager.task_index), folders))
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


def _missing_tasks(name: str, manager: TaskManager) -> list[str]:
    """A name that the harness has not found, or those of its group's members."""
    if name not in manager.task_index:
        return [name]
    group = manager.task_index[name].cfg or {}
    members = group.get("task")
    if not isinstance(members, list) or not _DATA_KEYS.isdisjoint(group):
        return []
    specs = [{"task": member} if isinstance(member, str) else member for member in members]
    names = [s["task"] for s in specs if "group" not in s and _DATA_KEYS.isdisjoint(s)]
    return [name for name in names if name not in manager.task_index]


@contextmanager
def seeded() -> Iterator[None]:
    """The harness's own random state for its first task, for each.

    Some shuffle their choices while they are loaded, as GPQA does: each node must ask the same.
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
    """Load a task or group and set its number of examples.

    Raises:
        UnusableTask: it cannot be evaluated as the suite asks.
    """
    if missing := _missing_tasks(task.task, manager):
        hint = did_you_mean(missing[0], manager.task_index)
        text = f"it lists tasks that do not exist: {', '.join(missing)}"
        raise UnusableTask(f"{text}; {hint}" if hint else text)
    built = manager.load([_specification(manager, task)])
    _check_has_one_score(built, task)
    shots = task.num_fewshot if task.num_fewshot is not None else suite.num_fewshot
    for member in built["tasks"].values():
        if getattr(member, "UNSAFE_CODE", False):
            raise UnusableTask("it runs code that the model has written, which is not done here")
        # As in simple_evaluate: a task that sets 0 itself is never given examples.
        own_shots = member.get_config("num_fewshot")
        if task.num_fewshot and own_shots == 0:
            rule = "it is never given examples (num_fewshot: 0)"
            raise UnusableTask(f"{rule}, got num_fewshot {task.num_fewshot}")
        if shots is not None and own_shots != 0:
            member.set_config(key="num_fewshot", value=shots)
        elif own_shots is None:
            member.set_config(key="num_fewshot", value=0)
        _check_choices(member)
        _build_requests_once(member)
    return built


def _specification(manager: TaskManager, task: EvalTask) -> str | dict[str, Any]:
    """What the harness loads: the task's name, or its YAML with the suite's name and files.

    Raises:
        UnusableTask: the suite does not give it the files that it reads.
    """
    yaml_path = manager.task_index[task.task].yaml_path
    if yaml_path is None:
        if task.name or task.data_files:
            raise UnusableTask("only a single task takes `name` and `data_files`, this is a tag")
        return task.task
    spec = task_spec(yaml_path)
    options = spec.get("dataset_kwargs") or {}
    split = spec.get("test_split") or spec.get("validation_split")
    if task.data_files and split and split not in task.data_files:
        given = ", ".join(task.data_files)
        raise UnusableTask(
            f"its data_files must name the split {split}, which it asks, got {given}"
        )
    if spec.get("dataset_path") in _FILE_READERS and not (task.data_files or options):
        files = f"{{task: {task.task}, data_files: {{{split or 'test'}: FILE}}}}"
        raise UnusableTask(f"it has no data_files: write {files}")
    if task.data_files:
        files_by_split = {split: resolve(file) for split, file in task.data_files.items()}
        spec["dataset_kwargs"] = {**options, "data_files": files_by_split}
    return spec | {"task": task.label} if task.name or task.data_files else task.task


def _check_has_one_score(built: Any, task: EvalTask) -> None:
    """Check that one number stands for the task: its own score, or its group's aggregate."""
    if task.name or task.data_files:
        if set(built["tasks"]) != {task.label}:
            raise UnusableTask("only a single task takes `name` and `data_files`, this is a group")
    elif task.task in built.get("groups", {}):
        if not built["groups"][task.task].has_aggregation:
            raise UnusableTask("the group has no aggregate_metric_list; name its tasks one by one")
    elif task.task not in built["tasks"]:
        members = ", ".join(built["tasks"])
        raise UnusableTask(f"it is a tag without a score of its own; name its tasks: {members}")


def _check_choices(member: Any) -> None:
    """Check that choices are a list: of a text the harness would ask for its characters."""
    if type(member) is ConfigurableTask and member.OUTPUT_TYPE == "multiple_choice":
        template = member.config.doc_to_choice
        choices = None if template is None else member.doc_to_choice(member.task_docs[0])
        if not isinstance(choices, list):
            rule = 'its doc_to_choice must give a list of texts, such as ["yes", "no"]'
            raise UnusableTask(f"{rule}, got {reprlib.repr(choices)}")


def rows_digest(task: Any) -> str:
    """Digest of what a task reads to make its documents and examples of.

    Of each split that is the number of rows and the first 50,000, without images. The documents
    themselves may be made anew by the task's code in each process, as GPQA shuffles its choices.
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
    digest = hashlib.sha256()
    for row in rows:
        # What JSON cannot represent, such as a date, counts by its type.
        plain = json.dumps(row, sort_keys=True, default=lambda value: type(value).__name__)
        digest.update(plain.encode())
    return digest.hexdigest()[:16]


def question_texts(task: Any, document: dict[str, Any]) -> set[str]:
    """A document's prompt and the fields of text in it; empty if the prompt is no text."""
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
        for name in _PER_DOCUMENT:
            setattr(task, name, _with_document_notes(getattr(task, name), documents))
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


def _with_document_notes(work: Callable[..., Any], documents: list[tuple[int, Any]]) -> Any:
    """Note in the errors of work on a document which one it is."""

    def noting(*arguments: Any, **options: Any) -> Any:
        document = arguments[0] if arguments else options["doc"]
        try:
            return work(*arguments, **options)
        except Exception as error:
            text = repr(document)
            number = next((number for number, known in documents if repr(known) == text), None)
            error.add_note(document_note(number, document))
            raise

    return noting


def document_note(number: int | None, document: Any) -> str:
    """Names a document in an error's notes, with the beginnings of its fields."""
    which = "a document" if number is None else f"document {number + 1}"
    return f"{which} {reprlib.repr(document)}"
