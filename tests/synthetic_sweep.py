"""Sweep folders made in a moment: no training, yet every record, item and metric as a sweep's.

Accuracies follow a made-up law: a trial learns with learning rate x scaling, more with rank, and
forgets with the same. Items are drawn from it, and all metrics are computed from the items by the
product's own functions.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables import metric_keys
from trainables.config import TrialConfig
from trainables.evaluation.forgetting import forgetting_metrics
from trainables.methods.base import Method
from trainables.methods.full import Full
from trainables.methods.lora import Lora
from trainables.records.item_records import items_file, write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import (
    BaseRecord,
    ItemScore,
    Measurement,
    SampleText,
    TaskScore,
    TrialRecord,
    TrialStatus,
    evaluation_name,
)
from trainables.records.sweep_record import Provenance, SweepRecord

TASKS = {
    "capitals": ("retention", 0.95),
    "crafts": ("retention", 0.9),
    "sorting": ("retention", 0.8),
    "sums": ("in_domain", 0.1),
    "longer_sums": ("ood", 0.08),
    "other_numbers": ("ood", 0.12),
}
RANKS = (1, 4, 16, 64)
STEPS = 100


@dataclass
class SyntheticSweep:
    """What to write.

    Attributes:
        failures: trial number to how it ended, for those that did not complete.
        recipes: by name the methods to draw from, in turns; LoRA and full fine-tuning if empty.
        prompt: of every item; `{}` becomes its number.
        strengths: at which complete trials have points; at 0.3, three of ten items are answered as
            by the trained model and the others as by the base.
    """

    trials: int = 24
    items: int = 40
    name: str = "synthetic"
    model: str = "some/model"
    seed: int = 0
    full_every: int = 4
    ranks: tuple[int, ...] = RANKS
    recipes: dict[str, tuple[Method, ...]] = field(default_factory=dict)
    objectives: tuple[dict[str, str], ...] = (
        {"metric": metric_keys.IN_DOMAIN_ACC, "mode": "max"},
        {"metric": metric_keys.FORGETTING_MEAN, "mode": "min"},
        {"metric": metric_keys.OOD_ACC, "mode": "max"},
    )
    constraints: tuple[dict[str, Any], ...] = ()
    failures: dict[int, TrialStatus] = field(default_factory=dict)
    reason: str = "ValueError: no <b>luck</b>"
    prompt: str = "What is item {}?"
    budget: int | None = None
    strengths: tuple[float, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the sweep's folder; returns it."""
        ledger = Ledger(folder)
        draw = random.Random(self.seed)
        base_items = self._items({task: accuracy for task, (_, accuracy) in TASKS.items()}, draw)
        base_scores = _scores(base_items)
        ledger.write_sweep(self._record())
        ledger.folder.base.mkdir(parents=True, exist_ok=True)
        base = BaseRecord(
            key=f"{self.model}-{self.items}",
            scores_key=f"{self.model}-{self.items}",
            scores=base_scores,
            metrics=_metrics(base_scores, base_scores, base_items, base_items),
            general_nll=2.5,
            parameters=1_000_000,
            train_samples=1600,
            validation_samples=0,
            skipped_samples=3,
            replayed_tokens=0.0,
            sample=SampleText(context="1 + 1 =", learned=" 2"),
            seconds=1.5,
        )
        ledger.folder.base_json.write_text(base.model_dump_json())
        write_items(ledger.folder.base_items, base_items)
        wrong, right = (_answered(base_items, score) for score in (0.0, 1.0))
        for number in range(self.trials):
            self._write_trial(ledger, number, base_items, wrong, right, base_scores, draw)
        return folder

    def _record(self) -> SweepRecord:
        return SweepRecord(
            sweep_id=f"{self.name}-id",
            config={
                "name": self.name,
                "seed": self.seed,
                **_parts(self.model),
                "objectives": list(self.objectives),
                "constraints": list(self.constraints),
                "sampler": "tpe",
                "search": {name: {} for name in self.recipes or ("lora", "full")},
                "budget": {"trials": self.budget or self.trials},
                "wandb": {"project": "forgetting-sweeps"},
            },
            provenance=Provenance(
                created=1.7e9,
                command="python tune/run.py synthetic",
                git_commit="0123abc",
                python="3.11.7",
                versions={"torch": "2.6"},
            ),
        )

    def _write_trial(
        self,
        ledger: Ledger,
        number: int,
        base_items: list[ItemScore],
        wrong: list[ItemScore],
        right: list[ItemScore],
        base_scores: dict[str, TaskScore],
        draw: random.Random,
    ) -> None:
        config = self._config(ledger.folder.attempt(number, 1), number, draw)
        status = self.failures.get(number, TrialStatus.COMPLETE)
        last: Measurement | None = None
        items: list[ItemScore] = []
        last_step = STEPS if status is TrialStatus.COMPLETE else STEPS // 2
        evaluations = () if status is TrialStatus.FAILED else (STEPS // 2, STEPS)
        for step in range(10, last_step + 1, 10):
            metrics = _costs(config, step)
            if step in evaluations:
                is_right = self._answers(config, step / STEPS, base_items, draw)
                items = [(wrong, right)[is_it][i] for i, is_it in enumerate(is_right)]
                metrics |= _metrics(base_scores, _scores(items), base_items, items)
                metrics |= {metric_keys.FORGETTING_NLL: 0.2, metric_keys.KL_BASE_TO_TUNED: 1.5}
                write_items(items_file(Path(config.output_dir), evaluation_name(step)), items)
            last = Measurement(step=step, total_steps=STEPS, metrics=metrics, time=1.7e9 + step)
            ledger.append(number, last)
        points: list[Measurement] = []
        for strength in self.strengths if status is TrialStatus.COMPLETE else ():
            assert last is not None
            some = [
                tuned if place % 10 < 10 * strength else before
                for place, (tuned, before) in enumerate(zip(items, base_items, strict=True))
            ]
            metrics = last.metrics | _metrics(base_scores, _scores(some), base_items, some)
            point = last.model_copy(update={"strength": strength, "metrics": metrics})
            write_items(items_file(Path(config.output_dir), point.name), some)
            ledger.append(number, point)
            points.append(point)
        ledger.write_trial(
            TrialRecord(
                config=config,
                points=tuple(points),
                params=_params(config),
                status=status,
                reason=None if status is TrialStatus.COMPLETE else self.reason,
                started=1.7e9,
                ended=None if status is TrialStatus.RUNNING else 1.7e9 + 60,
                last=last,
                weights_dir=config.weights_dir if status is TrialStatus.COMPLETE else None,
            )
        )

    def _config(self, output_dir: Path, number: int, draw: random.Random) -> TrialConfig:
        is_full = self.full_every and number % self.full_every == 0
        rank = draw.choice(self.ranks)
        ratio = draw.choice((1, 2, 4))
        method: Method = Full() if is_full else Lora(rank=rank, alpha=rank * ratio)
        recipe = method.name
        if self.recipes:
            recipe = list(self.recipes)[number % len(self.recipes)]
            method = draw.choice(self.recipes[recipe])
        slow = method.changes_base
        rate = 10 ** draw.uniform(-5, -3.5) if slow else 10 ** draw.uniform(-4.5, -2.5)
        return TrialConfig(
            trial_id=f"{self.name}-id-{number:04d}",
            number=number,
            seed=self.seed,
            data_seed=self.seed,
            recipe=recipe,
            method=method,
            learning_rate=rate,
            output_dir=str(output_dir),
            base_dir="base",
            **_parts(self.model),
        )

    def _answers(
        self, config: TrialConfig, done: float, base_items: list[ItemScore], draw: random.Random
    ) -> list[bool]:
        """Right before, forgotten with one probability; wrong before, learnt with another."""
        rank = _rank(config)
        strength = config.learning_rate * ((config.method.scale or 1) if rank else 20) * 300 * done
        reach = 1 - 0.5 ** (1 + (rank or 128) ** 0.5)
        learnt = {"in_domain": reach * min(1.0, strength), "ood": 0.6 * min(1.0, strength)}
        forgets = min(0.9, 0.08 * strength)
        answers = []
        for item in base_items:
            role = TASKS[item.task][0]
            if item.score > 0.5:
                answers.append(draw.random() > (forgets if role == "retention" else 0.02))
            else:
                answers.append(draw.random() < learnt.get(role, 0.02))
        return answers

    def _items(self, accuracies: dict[str, float], draw: random.Random) -> list[ItemScore]:
        return [
            ItemScore(
                task=task,
                doc_hash=hashlib.sha256(f"{task}{index}".encode()).hexdigest(),
                filter="none",
                score=float(draw.random() < accuracy),
                prompt=self.prompt.format(index),
                target=f"target {index}",
                answer="base's answer",
            )
            for task, accuracy in accuracies.items()
            for index in range(self.items)
        ]


def _answered(items: list[ItemScore], score: float) -> list[ItemScore]:
    update = {"score": score, "answer": f"answer {score:g}"}
    return [item.model_copy(update=update) for item in items]


def _parts(model: str) -> dict[str, Any]:
    roles: dict[str, list[str]] = {}
    for task, (role, _) in TASKS.items():
        roles.setdefault(role, []).append(task)
    return {
        "model": {"name": model},
        "data": {"path": "rows.jsonl"},
        "eval": roles,
        "train": {"steps": STEPS, "micro_batch_size": 16},
    }


def _params(config: TrialConfig) -> dict[str, float | int | str | bool]:
    method = config.method
    if not isinstance(method, Lora):
        return {
            "recipe": config.recipe,
            f"{config.recipe}/learning_rate": config.learning_rate,
        }
    return {
        "recipe": config.recipe,
        f"{config.recipe}/rank": method.rank,
        f"{config.recipe}/alpha_ratio": method.alpha / method.rank,
        f"{config.recipe}/learning_rate": config.learning_rate,
    }


def _rank(config: TrialConfig) -> int:
    """Zero for full fine-tuning."""
    return config.capacity.number if config.capacity else 0


def _scores(items: list[ItemScore]) -> dict[str, TaskScore]:
    scores = {}
    for task, (role, _) in TASKS.items():
        values = [item.score for item in items if item.task == task]
        mean = sum(values) / len(values)
        scores[task] = TaskScore(
            role=role,
            metric="acc",
            filter="none",
            value=mean,
            stderr=(mean * (1 - mean) / len(values)) ** 0.5,
            chance=0.25,
            choices=4.0,
            items=len(values),
        )
    return scores


def _metrics(
    base: dict[str, TaskScore],
    tuned: dict[str, TaskScore],
    base_items: list[ItemScore],
    tuned_items: list[ItemScore],
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    roles: dict[str, list[float]] = {}
    for task, score in tuned.items():
        key = metric_keys.task_score(score.role, task, score.metric)
        metrics |= {key: score.value, f"{key}_stderr": score.stderr or 0.0}
        roles.setdefault(score.role, []).append(score.value)
    metrics |= {metric_keys.role_mean(role): sum(v) / len(v) for role, v in roles.items()}
    metrics[metric_keys.OOD_GAP] = metrics[metric_keys.IN_DOMAIN_ACC] - metrics[metric_keys.OOD_ACC]
    return metrics | forgetting_metrics(base, tuned, base_items, tuned_items)


def _costs(config: TrialConfig, step: int) -> dict[str, float]:
    rank = _rank(config)
    parameters = 2000.0 * rank if rank else 1e6
    return {
        metric_keys.TRAIN_LOSS: 3.0 / (1 + step * config.learning_rate * 100),
        metric_keys.TOKENS_PER_SECOND: 4000.0 if rank else 2500.0,
        metric_keys.MAX_RESERVED: 0.7 if rank else 1.4,
        metric_keys.GPU_HOURS: step / 3600,
        metric_keys.TRAIN_SECONDS: step / 10,
        metric_keys.TRAINABLE_PARAMETERS: parameters,
        metric_keys.TOKENS_SEEN: step * 150.0,
    }
