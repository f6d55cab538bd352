"""A user's own DeepSpeed settings are read by DeepSpeed before the first trial."""

from __future__ import annotations

from typing import Any

import pytest
from faults import faults

from trainables.training.deepspeed_check import check_deepspeed_settings

STAGE_2 = {"zero_optimization": {"stage": 2}}


def test_the_settings_of_a_usual_file_are_accepted() -> None:
    check_deepspeed_settings(
        {
            "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
            "bf16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
            "gradient_clipping": "auto",
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "wandb": None,
        }
    )


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"zero_optimization": {"stage": 2, "overlap_com": True}}, "overlap_com"),
        ({"zero_optimization": {"stage": 3, "offload_param": "cpu"}}, "offload_param"),
        (STAGE_2 | {"elasticity": {"enabled": True}}, "Elastic training has been removed"),
    ],
)
def test_what_deepspeed_refuses_names_the_setting(settings: dict[str, Any], fact: str) -> None:
    (fault,) = faults(check_deepspeed_settings, settings)
    assert fault.field == "deepspeed.config"
    assert fact in fault.rule
