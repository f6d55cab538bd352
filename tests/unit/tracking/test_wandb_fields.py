"""What W&B shows of the base and of a trial beside their scores."""

from __future__ import annotations

import builders
import pytest
from builders import adapter, base_record, sweep_config, sweep_record, trial

from trainables.losses import LOSSES
from tune.tracking.wandb_fields import base_config, best_values, trial_config, trial_name


def test_the_base_is_shown_at_the_revision_that_was_measured() -> None:
    sweep = sweep_record(sweep_config(model={"name": "some/model", "revision": "main"}))
    assert base_config(sweep, base_record(revision="0a1b2c3"))["model/revision"] == "0a1b2c3"
    assert base_config(sweep, base_record())["model/revision"] == "main"


@pytest.mark.parametrize(("rate", "text"), [(1e-5, "1e-5"), (3.1623e-4, "3.16e-4")])
def test_a_trial_is_named_by_its_settings(rate: float, text: str) -> None:
    lora = adapter(rank=8, alpha=2.5)
    named = trial_name(builders.trial_config(7, lora, recipe="mine", learning_rate=rate))
    assert named == f"mine rank 8 alpha 2.5 lr={text} #7"
    assert trial_name(builders.trial_config(7, "full", learning_rate=rate)) == f"full lr={text} #7"


def test_the_settings_of_a_run_are_those_of_the_trial() -> None:
    lora = adapter(rank=4, alpha=16, rslora=True, dropout=0.1)
    record = trial(
        7, method=lora, recipe="mine", loss=LOSSES.find("dft")(),
        seed=5, data_seed=6, learning_rate=2e-5, attempt=3, confirms=0,
        data={"path": "rows.jsonl", "replay": {"path": "general.jsonl", "share": 0.25}},
        train={"batch_size": 32, "epochs": 3, "warmup": 0.2, "weight_decay": 0.3},
        params={"lora/rank": 4},
    )  # fmt: skip
    expected = {
        "recipe": "mine",
        "method": "lora",
        "loss": "dft",
        "capacity": 4,
        "capacity_name": "rank",
        "setting/group": "mine, rank 4, repeat",
        "trial/number": 7,
        "trial/attempt": 3,
        "trial/confirms": 0,
        "seed": 5,
        "data/path": "rows.jsonl",
        "data/replay_share": 0.25,
        "model/name": "some/model",
        "train/batch_size": 32,
        "train/epochs": 3,
        "train/warmup": 0.2,
        "train/weight_decay": 0.3,
        "train/learning_rate": 2e-5,
        "lora/rank": 4,
        "lora/alpha": 16,
        "lora/scaling": 8.0,  # 16 / sqrt(4)
        "lora/dropout": 0.1,
        "lora/dora": False,  # defaults are included
        "search/lora/rank": 4,
    }
    assert expected.items() <= trial_config(record).items()


def test_a_best_value_of_zero_is_told() -> None:
    assert best_values(trial(best={"forgetting/mean": 0.0})) == {"best/forgetting/mean": 0.0}
