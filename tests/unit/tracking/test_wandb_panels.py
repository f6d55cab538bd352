"""Which runs the panels of a comparison in W&B average with which."""

from __future__ import annotations

import pytest
from builders import adapter, scores, trial

from analysis.results.wandb_names import SETTING_GROUP, setting_group
from analysis.tracking.wandb_panels import panel_groups
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    OOD_ACC,
    TRAIN_LOSS,
    VALIDATION_LOSS,
)
from trainables.records.schema import TrialStatus
from tune.tracking.wandb_fields import trial_config


@pytest.mark.parametrize(
    ("record", "group"),
    [
        (trial(0, method=adapter(rank=4)), "LoRA, rank 4"),
        (trial(0, method="full"), "full fine-tuning"),
        (trial(1, confirms=0), "LoRA, rank 8, repeat"),
        (trial(0, status=TrialStatus.STOPPED_EARLY), "LoRA, rank 8, stopped early"),
        (trial(0, status=TrialStatus.DIVERGED, method="full"), "full fine-tuning, diverged"),
    ],
)
def test_complete_trials_of_the_search_alone_are_averaged(record, group):
    assert setting_group(record) == group
    assert trial_config(record)[SETTING_GROUP] == group


def test_panels_by_recipe_and_capacity_are_grouped_so_and_forgetting_is_without_the_base():
    logged = scores(0.5, 0.1)
    groups = panel_groups(logged, 20, (), ["LoRA, rank 4", "LoRA, rank 8", "full"])
    shown = {key: group.shown for group in groups for p in group.panels.values()
             for key in getattr(p, "metrics", None) or ()}  # fmt: skip
    settings = ("LoRA, rank 4", "LoRA, rank 8", "full")
    assert shown == {
        IN_DOMAIN_ACC: (*settings, "base"),
        OOD_ACC: (*settings, "base"),
        FORGETTING_MEAN: settings,
    }
    without_tasks = {k: v for k, v in logged.items() if k != IN_DOMAIN_ACC} | {VALIDATION_LOSS: 1.0}
    names = [name for g in panel_groups(without_tasks, 20, (), settings) for name in g.panels]
    assert "scatter of validation loss against forgetting by recipe" in names
    assert {"validation loss by recipe", "validation loss by recipe and capacity"} <= set(names)
    assert names.count("validation loss over steps by recipe and capacity") == 1
    grouped = [p.groupby for g in groups for p in g.panels.values() if hasattr(p, "groupby")]
    keys = [key.name for key in grouped]
    assert (keys.count("recipe"), keys.count(SETTING_GROUP)) == (3, 3 + 4)  # bars, and curves


def test_scores_at_other_strengths_are_drawn_over_strength_a_line_for_each_trial():
    logged = scores(0.5, 0.1)
    groups = panel_groups(logged, 20, (), ["LoRA, rank 4"], {IN_DOMAIN_ACC, FORGETTING_MEAN})
    [strengths] = [group for group in groups if group.title == "Strength of the update"]
    assert strengths.shown == ("LoRA, rank 4",)
    drawn = [(panel.x, *panel.y, panel.groupby) for panel in strengths.panels.values()]
    assert drawn == [
        ("strength/value", "strength/in_domain/acc_mean", None),
        ("strength/value", "strength/forgetting/mean", None),
    ]


def test_what_a_sweep_does_not_log_has_no_panel():
    groups = panel_groups((FORGETTING_MEAN, TRAIN_LOSS), 20, (), ["LoRA, rank 4"])
    assert [name for group in groups for name in group.panels] == [
        "parallel coordinates",
        "forgetting by recipe",
        "forgetting by recipe and capacity",
        "forgetting over steps by recipe and capacity",
        "training loss over steps by recipe and capacity",
        "parameter importance for forgetting",
    ]
