"""What W&B shows of the base and of a trial beside their scores."""

from __future__ import annotations

import builders
from builders import base_record, sweep_config, sweep_record, trial

from trainables.config import LoraConfig
from tune.tracking.wandb_fields import base_config, trial_config, trial_name


def test_the_base_is_shown_at_the_revision_that_was_measured() -> None:
    sweep = sweep_record(sweep_config(model={"name": "some/model", "revision": "main"}))
    assert base_config(sweep, base_record(revision="0a1b2c3"))["model/revision"] == "0a1b2c3"
    assert base_config(sweep, base_record())["model/revision"] == "main"


def test_a_trial_is_named_by_its_settings() -> None:
    lora = LoraConfig(rank=8, alpha=2.5)
    named = trial_name(builders.trial_config(7, lora=lora, learning_rate=2e-5))
    assert named == "lora r=8 alpha=2.5 lr=2e-5 #7"
    assert trial_name(builders.trial_config(7, "full")) == "full lr=3.2e-4 #7"


def test_a_trial_that_replays_nothing_is_at_a_share_of_zero() -> None:
    assert trial_config(trial())["data/replay_share"] == 0.0
