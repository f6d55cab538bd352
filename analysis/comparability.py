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
    return [*_notices(*sweeps)]


def _notices(first: Sweep, *others: Sweep) -> Iterator[str]:
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
    if drift := names(_drift):
        yield (
            f"These sweeps measure drift differently ({drift}): do not compare their "
            f"{metric_keys.KL_BASE_TO_TUNED} or {metric_keys.FORGETTING_NLL}."
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
    inputs = first.record.inputs.items()
    edited = [f for f, digest in inputs if other.record.inputs.get(f, digest) != digest]
    files = [f for f in edited if f.startswith("data.") and not f.startswith(tuple(settings))]
    return settings + [f"content of {field}" for field in files]


def _drift(first: Sweep, other: Sweep) -> list[str]:
    """Settings in which two sweeps measure KL and the loss on general text differently."""
    one, another = (EvalSuite.model_validate(s.record.config["eval"]) for s in (first, other))
    nll = [sweep.base.general_nll or math.nan for sweep in (first, other)]
    found = []
    # On one text, the same model's values differ by rounding alone, on another device.
    if abs(nll[0] - nll[1]) > 1e-3 * nll[0]:
        found.append("eval.general_text")
    if one.kl_prompts and another.kl_prompts:
        names = ("kl_prompts", "kl_tokens")
        found += [f"eval.{n}" for n in names if getattr(one, n) != getattr(another, n)]
    return found


def _training(first: Sweep, other: Sweep) -> list[str]:
    """Settings such as `train.steps` that affect results and in which two sweeps differ."""
    trains = [TrainConfig.model_validate(sweep.record.config["train"]) for sweep in (first, other)]
    one, another = (train.model_dump(exclude=CHANGES_NO_RESULT) for train in trains)
    return [f"train.{name}" for name, value in one.items() if another[name] != value]
