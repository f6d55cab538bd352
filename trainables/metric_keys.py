"""Names of all metrics, with unit and direction.

Keys are namespaced with slashes; those of time, memory, speed and cost end in their unit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Direction = Literal["min", "max", "none"]

TRAIN_LOSS = "train/loss"
VALIDATION_LOSS = "validation/loss"
LEARNING_RATE = "train/learning_rate"
GRAD_NORM = "train/grad_norm"
GLOBAL_STEP = "train/global_step"
EPOCH = "train/epoch"
TOKENS_SEEN = "train/tokens_seen"
IN_DOMAIN_ACC = "in_domain/acc_mean"
RETENTION_ACC = "retention/acc_mean"
RETENTION_RATIO = "retention/ratio_mean"
OOD_ACC = "ood/acc_mean"
OOD_GAP = "ood/gap"
FORGETTING_MEAN = "forgetting/mean"
FORGETTING_MAX = "forgetting/max"
FORGETTING_POSITIVE = "forgetting/positive_mean"
FORGETTING_NLL = "forgetting/nll"
KL_BASE_TO_TUNED = "kl/base_to_tuned"
TOKENS_PER_SECOND = "perf/tokens_per_s_per_gpu"
MAX_RESERVED = "memory/max_reserved_gib"
MICRO_BATCH_SIZE = "memory/micro_batch_size"
EVAL_BATCH_SIZE = "memory/eval_batch_size"
TRAIN_SECONDS = "time/train_s"
EVAL_SECONDS = "time/eval_s"
GPU_HOURS = "cost/gpu_h"
TRAINABLE_PARAMETERS = "params/trainable"


@dataclass(frozen=True)
class Metric:
    """What a key means: unit, the better direction, one line of definition.

    Attributes:
        adds_up: whether it is a total or peak so far, so that only the last value counts.
    """

    unit: str
    better: Direction
    meaning: str
    adds_up: bool = False


METRICS: dict[str, Metric] = {
    TRAIN_LOSS: Metric(
        "nats/token",
        "min",
        "completion tokens' cross-entropy, mean of the steps since the last point",
    ),
    VALIDATION_LOSS: Metric("nats/token", "min", "cross-entropy on held-out completions"),
    LEARNING_RATE: Metric("1", "none", "learning rate of the step"),
    GRAD_NORM: Metric("1", "none", "gradient norm before clipping"),
    GLOBAL_STEP: Metric("optimizer steps", "none", "the x axis of every curve", adds_up=True),
    EPOCH: Metric("epochs", "none", "passes over the training data", adds_up=True),
    TOKENS_SEEN: Metric(
        "tokens", "none", "input tokens trained on, padding excluded", adds_up=True
    ),
    IN_DOMAIN_ACC: Metric("share", "max", "mean accuracy over the in-domain tasks"),
    RETENTION_ACC: Metric("share", "max", "mean accuracy over the retention tasks"),
    RETENTION_RATIO: Metric(
        "share", "max", "(tuned - chance) / (base - chance), mean where the base is above chance"
    ),
    OOD_ACC: Metric("share", "max", "unweighted mean accuracy over the out-of-domain tasks"),
    OOD_GAP: Metric("share", "min", "in-domain minus out-of-domain accuracy"),
    FORGETTING_MEAN: Metric("share", "min", "base minus tuned accuracy, mean over retention tasks"),
    FORGETTING_MAX: Metric("share", "min", "base minus tuned accuracy, worst retention task"),
    FORGETTING_POSITIVE: Metric("share", "min", "mean of the positive parts of forgetting"),
    FORGETTING_NLL: Metric("nats/token", "min", "LM drift: rise of cross-entropy on general text"),
    KL_BASE_TO_TUNED: Metric("nats/token", "min", "KL(base || tuned) on tokens sampled from base"),
    TOKENS_PER_SECOND: Metric("tokens/s", "max", "training throughput per GPU, on CPUs per worker"),
    MAX_RESERVED: Metric(
        "GiB", "min", "peak memory: reserved on the GPU, else resident; none in slots", adds_up=True
    ),
    MICRO_BATCH_SIZE: Metric(
        "samples", "none", "of a forward pass; below train.micro_batch_size where memory ran out"
    ),
    EVAL_BATCH_SIZE: Metric(
        "samples", "none", "of an evaluation; below eval.batch_size where memory ran out"
    ),
    TRAIN_SECONDS: Metric("s", "min", "time spent training, with its checkpoints", adds_up=True),
    EVAL_SECONDS: Metric("s", "min", "time spent evaluating", adds_up=True),
    GPU_HOURS: Metric("GPU h", "min", "GPUs times time in training and evaluation", adds_up=True),
    TRAINABLE_PARAMETERS: Metric("parameters", "none", "parameters the optimizer updates"),
}


def task_score(role: str, task: str, metric: str) -> str:
    """Key of a task's score, such as `ood/piqa/acc`."""
    return f"{role}/{task}/{metric}"


def role_mean(role: str) -> str:
    """Key of a role's mean accuracy."""
    return f"{role}/acc_mean"


def domain_metric(measured: Collection[str]) -> str:
    """Key of the domain's metric among `measured`: accuracy, or without tasks validation loss."""
    has_no_tasks = IN_DOMAIN_ACC not in measured and VALIDATION_LOSS in measured
    return VALIDATION_LOSS if has_no_tasks else IN_DOMAIN_ACC


def task_forgetting(task: str) -> str:
    """Key of one retention task's forgetting."""
    return f"forgetting/{task}"


def task_forgetting_adjusted(task: str) -> str:
    """Key of chance-adjusted forgetting (2510.17776)."""
    return f"forgetting_chance_adjusted/{task}"


def task_retention_ratio(task: str) -> str:
    """Key of one task's retention ratio."""
    return f"retention/{task}/ratio"


def retention_metrics(task: str) -> dict[str, Metric]:
    """What is logged of one retention task besides its score."""
    return {
        task_forgetting(task): Metric("share", "min", f"base minus tuned accuracy on {task}"),
        task_forgetting_adjusted(task): Metric(
            "share", "min", f"forgetting on {task} beyond what guessing explains"
        ),
        task_retention_ratio(task): Metric(
            "share", "max", f"share of the skill above chance left on {task}"
        ),
        task_flips(task, "forgotten"): Metric(
            "share", "min", f"items of {task} that went right to wrong"
        ),
        task_flips(task, "gained"): Metric(
            "share", "max", f"items of {task} that went wrong to right"
        ),
    }


def task_flips(task: str, direction: Literal["forgotten", "gained"]) -> str:
    """Key of the share of items that flipped right -> wrong or wrong -> right."""
    return f"flips/{task}/{direction}"
