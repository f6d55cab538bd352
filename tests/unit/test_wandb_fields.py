"""What W&B shows of the base beside its scores."""

from __future__ import annotations

from builders import base_record, sweep_config, sweep_record

from tune.tracking.wandb_fields import base_config


def test_the_base_is_shown_at_the_revision_that_was_measured() -> None:
    sweep = sweep_record(sweep_config(model={"name": "some/model", "revision": "main"}))
    assert base_config(sweep, base_record(revision="0a1b2c3"))["model/revision"] == "0a1b2c3"
    assert base_config(sweep, base_record())["model/revision"] == "main"
