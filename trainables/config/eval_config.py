"""The tasks that a trial is evaluated on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trainables.frozen import Frozen

Role = Literal["in_domain", "retention", "ood"]
ROLES: tuple[Role, ...] = ("in_domain", "retention", "ood")
GENERAL_TEXT_TOKENS = 512  # where documents of `general_text` are cut


class EvalTask(Frozen):
    """One lm-evaluation-harness task (or group) in a role.

    Attributes:
        task: its name in the harness or in one of the suite's `task_dirs`.
        name: label in results; lets one task be used with several data files.
        metric: which one counts as accuracy; by default the first found of acc, exact_match, ....
        filter: which of the task's filters to read; by default its first.
        num_fewshot, limit: override the suite's; in a group, `limit` applies to each task.
        data_files: split to local file, in the format of the task's `dataset_path`: `json` (JSONL),
            `csv` or `parquet`.
    """

    task: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.\-]+$")
    metric: str | None = None
    filter: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    data_files: dict[str, str] | None = None

    @property
    def label(self) -> str:
        """Its name in metric keys and results."""
        return self.name or self.task

    def __hash__(self) -> int:
        """By the label only, as a dict has no hash."""
        return hash(self.label)


def _task_from_name(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


Tasks = tuple[Annotated[EvalTask, BeforeValidator(_task_from_name)], ...]


class EvalSuite(Frozen):
    """Which harness tasks play which role, and how they are run.

    Attributes:
        in_domain: held-out tasks of the trained domain; without any, the validation loss measures
            how well it is learned.
        retention: what the base already knows; forgetting is measured there.
        ood: shifts of the domain.
        task_dirs: folders with the user's own task YAMLs, searched before the harness's. They are
            code: they may name Python functions (`!function`), and their Jinja is not sandboxed.
        num_fewshot, limit: as in the harness; `limit` is the number of documents per task, in a
            group of each of its tasks.
        batch_size: sequences per forward pass; for likelihoods a budget of tokens, this many times
            the length of the longest request, at least 64.
        chat_template: apply the tokenizer's; dates in it are that of `chat_date`.
        system_instruction: the system's turn of each chat, or the beginning of each prompt.
        general_text: rows as in `data.path` with a field `text`, or a file such as `.txt` with one
            document a line; its cross-entropy is the LM drift.
        kl_prompts, kl_tokens: number of prompts of the training domain, and of tokens sampled from
            the base after each, on which KL drift is measured. Held-out rows come first.
    """

    in_domain: Tasks = ()
    retention: Tasks = ()
    ood: Tasks = ()
    task_dirs: tuple[str, ...] = ()
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    chat_template: bool = False
    system_instruction: str | None = None
    general_text: str | None = None
    kl_prompts: int = Field(default=16, ge=0)
    kl_tokens: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> EvalSuite:
        labels = [task.label for _, task in self.tasks()]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if repeated:
            rule = f"each task may be in one role once, got {', '.join(repeated)} more than once"
            raise ValueError(f"{rule}; give one of them another `name`")
        return self

    def tasks(self) -> list[tuple[Role, EvalTask]]:
        """Every task with its role, in the order of the roles."""
        return [(role, task) for role in ROLES for task in getattr(self, role)]

    def task_limit(self, task: EvalTask) -> int | None:
        """Number of documents to evaluate a task on; None for all."""
        return self.limit if task.limit is None else task.limit
