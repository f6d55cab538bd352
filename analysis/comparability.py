"""Warnings about sweeps that are shown together although they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from analysis.sweeps import Sweep
from trainables import metric_keys
from trainables.config import DataConfig, EvalSuite, TrainConfig
from trainables.config.train_config import CHANGES_NO_RESULT

_MAY_EXPLAIN = "this may explain differences between their trials"


def notices(sweeps: Sequence[Sweep]) -> list[str]:
    """One sentence for each way in which the sweeps differ, with what does not compare."""
    first, *others = sweeps
    return [*_differences(first, others)]


def _differences(first: Sweep, others: Sequence[Sweep]) -> Iterator[str]:
    def names(differing: Callable[[Sweep, Sweep], list[str]]) -> str:
        return ", ".join(sorted({name for other in others for name in differing(first, other)}))

    goals = first.settings.objectives, first.settings.constraints
    if any((s.settings.objectives, s.settings.constraints) != goals for s in others):
        yield (
            "These sweeps have different objectives or constraints; those of "
            f"{first.title} are used for all."
        )
    seed = first.record.config["seed"]
    if any(s.record.config["seed"] != seed and s.base.key != first.base.key for s in others):
        yield (
            "These sweeps have different seeds, and may hold out different rows: do not compare "
            "their KL or validation losses. Accuracies and forgetting compare."
        )
    if any(_have_different_texts(first, other) for other in others):
        yield (
            "These sweeps use different general texts (eval.general_text): do not compare their "
            f"{metric_keys.FORGETTING_NLL}."
        )
    if len({_kl_sample(sweep) for sweep in (first, *others)} - {None}) > 1:
        yield (
            "These sweeps measure KL on different numbers of prompts or tokens (eval.kl_prompts, "
            f"eval.kl_tokens): do not compare their {metric_keys.KL_BASE_TO_TUNED}."
        )
    if files := names(_task_files):
        yield (
            f"These sweeps use different task files ({files}): accuracies and forgetting compare "
            "only if the files score answers in the same way."
        )
    if data := names(_data):
        yield (
            f"These sweeps use different data ({data}): {_MAY_EXPLAIN}, and KL and validation "
            "losses may not compare."
        )
    if settings := names(_training):
        yield f"These sweeps use different training settings ({settings}): {_MAY_EXPLAIN}."


def _data(first: Sweep, other: Sweep) -> list[str]:
    """Settings such as `data.path` in which two sweeps differ, and files that were edited."""
    one, another = (
        DataConfig.model_validate(sweep.record.config["data"]).model_dump()
        for sweep in (first, other)
    )
    settings = [f"data.{name}" for name, value in one.items() if another[name] != value]
    edited = _edited(first, other, "data.")
    return settings + [f"content of {f}" for f in edited if not f.startswith(tuple(settings))]


def _edited(first: Sweep, other: Sweep, section: str) -> list[str]:
    """Fields of a section that name files whose content differs."""
    return [
        field
        for field, digest in first.record.inputs.items()
        if field.startswith(section) and other.record.inputs.get(field, digest) != digest
    ]


def _have_different_texts(first: Sweep, other: Sweep) -> bool:
    one, another = first.base.general_nll, other.base.general_nll
    if one is None or another is None:
        return False
    # On one text, the same model's values differ by rounding alone, on another device.
    is_same = math.isclose(one, another, rel_tol=1e-3)
    return not is_same or bool(_edited(first, other, "eval.general_text"))


def _kl_sample(sweep: Sweep) -> tuple[int, int] | None:
    """Prompts, and tokens of each, that KL was measured on; None if it was not."""
    suite = EvalSuite.model_validate(sweep.record.config["eval"])
    return (suite.kl_prompts, suite.kl_tokens) if suite.kl_prompts else None


def _task_files(first: Sweep, other: Sweep) -> list[str]:
    """Files of tasks that differ, unless the evaluation is known to be the same."""
    if first.base.scores_key == other.base.scores_key:
        return []
    edited = _edited(first, other, "eval.")
    return [f"content of {field}" for field in edited if field != "eval.general_text"]


def _training(first: Sweep, other: Sweep) -> list[str]:
    """Settings such as `train.steps` that affect results and in which two sweeps differ."""
    trains = [TrainConfig.model_validate(sweep.record.config["train"]) for sweep in (first, other)]
    one, another = (train.model_dump(exclude=CHANGES_NO_RESULT) for train in trains)
    return [f"train.{name}" for name, value in one.items() if another[name] != value]
