"""The base's evaluation as a sweep has it made, for tests that care about a part of it alone."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainables.config import BaseRequirements
from trainables.evaluation.base_scores import evaluate_base

if TYPE_CHECKING:
    from tune.config.sweep_config import SweepConfig

NO_REQUIREMENTS = BaseRequirements()


def evaluated_base(
    config: SweepConfig,
    cache: Path,
    requirements: BaseRequirements = NO_REQUIREMENTS,
    **sections: Any,
) -> Path:
    """The folder in the cache; `sections` replace `model`, `data` or `eval` of the config."""
    sweep = config.model_copy(update=sections)
    with TemporaryDirectory() as scratch:
        return evaluate_base(
            sweep.model,
            sweep.data,
            sweep.eval,
            sweep.seed,
            cache,
            Path(scratch) / "data",
            requirements,
        )
