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
