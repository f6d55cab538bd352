"""What to heed where sweeps are shown together that differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from analysis.sweeps import Sweep
from trainables import metric_keys
from trainables.config import DataConfig, EvalSuite, TrainConfig
from trainables.config.train_config import CHANGES_NO_RESULT


def notices(sweeps: Sequence[Sweep]) -> list[str]:
    """Caveats about sweeps that are shown together although they differ."""
    first, *others = sweeps
    return [*_of_measuring(first, others), *_of_training(first, others)]


def _of_measuring(first: Sweep, others: Sequence[Sweep]) -> Iterator[str]:
    settings = first.settings
    goals = settings.objectives, settings.constraints
    if any((s.settings.objectives, s.settings.constraints) != goals for s in others):
        yield (
            "These sweeps had different objectives or constraints; those of "
            f"{first.title} are used for all."
        )
    seed = first.record.config["seed"]
    if any(s.record.config["seed"] != seed and s.base.key != first.base.key for s in others):
        if all(_data(sweep).validation_path for sweep in (first, *others)):
            yield (
                "These sweeps had different seeds, and so drew other prompts for KL: do not "
                f"compare {metric_keys.KL_BASE_TO_TUNED} of one with that of another. Accuracies, "
                "forgetting and validation losses compare."
            )
        else:
            yield (
                "These sweeps had different seeds, and so held other rows out: compare neither KL "
                "nor validation losses of one with those of another. Accuracies and forgetting "
                "compare."
            )
    if any(_other_text(first, sweep) for sweep in others):
        yield (
            "These sweeps were measured on other general texts (eval.general_text): do not compare "
            f"{metric_keys.FORGETTING_NLL} of one with that of another."
        )
    if len({_kl_sample(sweep) for sweep in (first, *others)} - {None}) > 1:
        yield (
            "These sweeps sampled other numbers of prompts or tokens for KL (eval.kl_prompts, "
            f"eval.kl_tokens): do not compare {metric_keys.KL_BASE_TO_TUNED} of one with that of "
            "another."
        )
    if files := sorted({name for sweep in others for name in _other_task_files(first, sweep)}):
        yield (
            f"These sweeps were evaluated with other files ({', '.join(files)}): accuracies and "
            "forgetting compare only if nothing in them changes how answers are scored."
        )


def _of_training(first: Sweep, others: Sequence[Sweep]) -> Iterator[str]:
    if data := sorted({name for sweep in others for name in _other_data(first, sweep)}):
        # No rows are held out of replayed data, nor of any where `data.validation_path` has them.
        held_out_of = [name for name in data if "data.replay" not in name]
        if not held_out_of:
            on_measuring = "."
        elif _data(first).validation_path and all(n.endswith("data.path") for n in held_out_of):
            on_measuring = (
                ". Validation losses compare, and KL unless fewer rows are held out than "
                "eval.kl_prompts."
            )
        else:
            on_measuring = ", and neither KL nor validation losses compare."
        yield (
            f"These sweeps were trained on other data ({', '.join(data)}): what differs between "
            f"trials of one and of another may come from there{on_measuring}"
        )
    if trained := sorted({name for sweep in others for name in _trained_otherwise(first, sweep)}):
        yield (
            f"These sweeps were trained with other settings ({', '.join(trained)}): what differs "
            "between trials of one and of another may come from there."
        )


def _other_data(first: Sweep, other: Sweep) -> list[str]:
    """Settings such as `data.path` in which two sweeps differ, and files that were edited."""
    one, another = (_data(sweep).model_dump() for sweep in (first, other))
    settings = [f"data.{name}" for name, value in one.items() if another[name] != value]
    return settings + [
        f"content of {field}"
        for field in _edited(first, other, "data.")
        if not field.startswith(tuple(settings))
    ]


def _data(sweep: Sweep) -> DataConfig:
    return DataConfig.model_validate(sweep.record.config["data"])


def _edited(first: Sweep, other: Sweep, section: str) -> list[str]:
    """Fields of a section that name files whose content differs."""
    return [
        field
        for field, digest in first.record.inputs.items()
        if field.startswith(section) and other.record.inputs.get(field, digest) != digest
    ]


def _other_text(first: Sweep, other: Sweep) -> bool:
    """Whether LM drift was measured by both, on different texts."""
    one, another = first.base.general_nll, other.base.general_nll
    if one is None or another is None:
        return False
    # Of one text, the same model's differ by rounding alone, on another device or in other batches.
    return not math.isclose(one, another, rel_tol=1e-3) or bool(
        _edited(first, other, "eval.general_text")
    )


def _kl_sample(sweep: Sweep) -> tuple[int, int] | None:
    """Prompts, and tokens of each, that KL was measured on; None if it was not."""
    suite = EvalSuite.model_validate(sweep.record.config["eval"])
    return (suite.kl_prompts, suite.kl_tokens) if suite.kl_prompts else None


def _other_task_files(first: Sweep, other: Sweep) -> list[str]:
    """Files of tasks that differ, unless the evaluation is known to be the same."""
    if first.base.scores_key == other.base.scores_key:
        return []
    edited = _edited(first, other, "eval.")
    return [f"content of {field}" for field in edited if field != "eval.general_text"]


def _trained_otherwise(first: Sweep, other: Sweep) -> list[str]:
    """Settings such as `train.steps` that affect results and in which two sweeps differ."""
    trains = [TrainConfig.model_validate(sweep.record.config["train"]) for sweep in (first, other)]
    one, another = (train.model_dump(exclude=CHANGES_NO_RESULT) for train in trains)
    return [f"train.{name}" for name, value in one.items() if another[name] != value]
