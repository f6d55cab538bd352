"""lm-evaluation-harness, tried with 0.4.12 and 0.4.13."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml


def task_spec(file: Path | str, **options: Any) -> dict[str, Any]:
    """The content of a task's YAML file with its `include` and `!function` resolved.

    Why: the public `TaskManager` reads it only together with the data. Upstream: none.
    """
    return dict(load_yaml(file, **options))


def filter_names(task: Any) -> list[str]:
    """The names of a task's filters; empty for tasks in Python that have none.

    Why: scores are kept by filter, and a wrong name would be found after the evaluation only.
    Upstream: none.
    """
    return [each.name for each in getattr(task, "_filters", ())]
