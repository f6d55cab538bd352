"""A trained model is evaluated at other strengths of its update, and left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from measured import by_step
from peft import PeftModel
from safetensors.torch import load_file
from trained_trials import KINDS, train
from transformers import AutoModelForCausalLM

from trainables.evaluation.base_scores import Base, compare_with_base
from trainables.evaluation.evaluator import shared_evaluator
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, KL_BASE_TO_TUNED
from trainables.models.loading import load_model
from trainables.records.item_records import items_file, read_items
from trainables.training.reporter import ListReporter, StopTrial

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement

    MakeTrial = Callable[..., TrialConfig]

SHORT = {"steps": 4, "batch_size": 8, "micro_batch_size": 4, "report_every": 2}
SCALED = {name: KINDS[name] for name in ("lora", "full, stage 2, bfloat16")} | {
    "full, stage 3": {"method": "full", "deepspeed": {"zero_stage": 3}},
    "full": {"method": "full"},
}


def split(reporter: ListReporter) -> tuple[list[Measurement], dict[float, Measurement]]:
    """The usual measurements, and the points by strength."""
    usual = [m for m in reporter.measurements if not m.is_altered]
    return usual, {m.strength: m for m in reporter.measurements if m.is_altered}


@pytest.mark.parametrize("kind", SCALED)
def test_points_are_of_the_base_plus_a_share_of_the_update(
    make_trial: MakeTrial, base: Base, kind: str
) -> None:
    parts = SCALED[kind] | {"train": SHORT, "learning_rate": 5e-4}
    plain, reporter = make_trial(**parts), ListReporter()
    train(plain, reporter)
    trial, with_points = make_trial(**parts, strengths=(0.3, 0.6, 1.2)), ListReporter()
    train(trial, with_points)
    usual, points = split(with_points)
    assert by_step(usual) == by_step(reporter.measurements)
    assert list(points) == [0.3, 0.6, 1.2]
    drift = [points[s].metrics[KL_BASE_TO_TUNED] for s in points]
    assert drift[0] < drift[1] < usual[-1].metrics[KL_BASE_TO_TUNED] < drift[2]
    weights = [Path(each.output_dir) / "weights" for each in (plain, trial)]
    files = [load_file(next(folder.glob("*model.safetensors"))) for folder in weights]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    scored, items = scores_at(trial, base, 0.6)
    for key in (IN_DOMAIN_ACC, FORGETTING_MEAN, KL_BASE_TO_TUNED):
        assert points[0.6].metrics[key] == pytest.approx(scored[key], rel=1e-4, abs=1e-5)
    recorded = read_items(items_file(Path(trial.output_dir), points[0.6].name))
    assert [item.score for item in recorded] == items


def scores_at(trial: TrialConfig, base: Base, strength: float) -> tuple[dict[str, float], Any]:
    """What W0 + strength x (W - W0) scores, on weights that plain libraries loaded."""
    start, folder = load_model(trial.model), Path(trial.output_dir) / "weights"
    if trial.method.changes_base:
        tuned = AutoModelForCausalLM.from_pretrained(folder, dtype=trial.model.dtype)
    else:
        tuned = PeftModel.from_pretrained(load_model(trial.model), folder).merge_and_unload()
    before = dict(start.named_parameters())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            first = before[name].float()
            parameter.copy_(first.lerp(parameter.float(), strength))
    evaluator = shared_evaluator(trial.model, trial.eval)
    evaluation, metrics = compare_with_base(base, tuned.eval(), evaluator)
    return metrics, [item.score for item in evaluation.items]


class Stopper(ListReporter):
    """Asks the trial to stop once it has reported the first point."""

    def stop_requested(self) -> bool:
        return self.measurements[-1:] != [] and self.measurements[-1].is_altered


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_trial_that_stops_between_two_strengths_goes_on_with_the_next(
    make_trial: MakeTrial, method: str
) -> None:
    parts: dict[str, Any] = {"method": method, "train": SHORT}
    whole, reporter = make_trial(**parts, strengths=(0.2, 0.4)), ListReporter()
    train(whole, reporter)
    first, stopper = make_trial(**parts, strengths=(0.2, 0.4)), Stopper()
    with pytest.raises(StopTrial):
        train(first, stopper)
    earlier = (first.output_dir,)
    again = make_trial(**parts, strengths=(0.4,), earlier_attempts=earlier)
    resumed = ListReporter()
    result = train(again, resumed)
    assert result.weights_dir is not None
    (expected,) = (m for m in reporter.measurements if m.strength == 0.4)
    assert list(split(stopper)[1]) == [0.2]
    (point,) = split(resumed)[1].values()
    assert by_step([point]) == by_step([expected])
