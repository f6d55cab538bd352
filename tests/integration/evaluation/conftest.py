"""Models to evaluate, and an evaluator of the test's own tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from own_tasks import suite, write_items, write_task

from trainables.evaluation.evaluator import Evaluator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def perturb(model: Any, only: str = "") -> Any:
    """Give a model other weights, so that some answers are right and some are wrong."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def perturbed() -> Callable[..., Any]:
    return perturb


@pytest.fixture
def tuned(base_model: Any) -> Any:
    return perturb(base_model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a task `few`, which has a training split to draw examples from."""
    write_items(tmp_path / "train.jsonl", offset=0)
    write_items(tmp_path / "test.jsonl", offset=40)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    splits = {"training_split": "train", "fewshot_split": "train"}
    write_task(tmp_path, "few", dataset_kwargs={"data_files": files}, **splits)
    return tmp_path


@pytest.fixture
def asking(folder: Path, tokenizer: Any) -> Callable[..., Evaluator]:
    """An evaluator of tasks of the folder."""

    def asking(*in_domain: Any, **fields: Any) -> Evaluator:
        asked = {"task_dirs": (str(folder),), "in_domain": in_domain} | fields
        return Evaluator(suite(**asked), tokenizer)

    return asking
