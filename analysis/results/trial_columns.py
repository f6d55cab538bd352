"""A trial's settings and fate as columns of a table, the same in results.csv and in notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from trainables.records.schema import TrialRecord

_OF_RECIPE: dict[str, Callable[[TrialRecord], object]] = {
    "number": lambda r: r.number,
    "trial_id": lambda r: r.config.trial_id,
    "confirms": lambda r: r.confirms,
    "seed": lambda r: r.config.seed,
    "recipe": lambda r: r.config.recipe,
    "method": lambda r: r.config.method.name,
    "loss": lambda r: r.config.loss.name,
    "capacity": lambda r: r.config.capacity and r.config.capacity.number,
    "capacity_name": lambda r: r.config.capacity and r.config.capacity.name,
}
_OF_TRAINING: dict[str, Callable[[TrialRecord], object]] = {
    "learning_rate": lambda r: r.config.learning_rate,
    "batch_size": lambda r: r.config.train.batch_size,
    "micro_batch_size": lambda r: r.config.train.micro_batch_size,
    "epochs": lambda r: r.epochs,
    "steps": lambda r: r.config.train.steps,
    "warmup": lambda r: r.config.train.warmup,
    "weight_decay": lambda r: r.config.train.weight_decay,
    "replay_share": lambda r: r.config.data.replay_share,
    "replay_control": lambda r: r.config.data.replay_control,
    "status": lambda r: r.status.value,
    "reason": lambda r: r.reason,
    "attempt": lambda r: r.attempt,
    "seconds": lambda r: r.seconds,
    "strength": lambda r: r.strength,
    "repair": lambda r: r.repair,
    "weights_dir": lambda r: r.weights_dir,
    "best_weights_dir": lambda r: r.best_weights_dir,
}


def setting_columns(record: TrialRecord) -> dict[str, object]:
    """A trial's values of the columns; those of its method and loss are under their names."""
    method, loss = record.config.method, record.config.loss
    return {
        **{column: value(record) for column, value in _OF_RECIPE.items()},
        **{f"{method.name}/{field}": _text(value) for field, value in method.columns.items()},
        **{f"{loss.name}/{field}": getattr(loss, field) for field in type(loss).model_fields},
        **{column: value(record) for column, value in _OF_TRAINING.items()},
    }


def column_order(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The columns of rows of several methods, where those of a method stand before the rate."""
    found = dict.fromkeys(column for row in rows for column in row)
    own = [column for column in found if column not in {*_OF_RECIPE, *_OF_TRAINING}]
    return [*_OF_RECIPE, *own, *_OF_TRAINING]


def _text(value: object) -> object:
    return " ".join(value) if isinstance(value, tuple) else value
