"""Trials of one GPU and of many take turns within the resources that a sweep may hold."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_config
from ray.tune.search import Searcher

from trainables.config import TrialConfig
from trainables.errors import UserError
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import Outcome, TrialRecord, TrialStatus
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import check_resources, held_by_worker, max_concurrent, within_limit
from tune.resources.placement import Placement, Room
from tune.search.searcher import OptunaSearcher
from tune.search.trial_ids import TrialMaker

CLUSTER = {"CPU": 64.0, "GPU": 64.0}


def sweep(**resources: Any) -> SweepConfig:
    rates = {"learning_rate": {"low": 1e-5, "high": 1e-3}}
    return sweep_config(
        trials=60,
        search={"lora": {"rank": 4, "alpha_ratio": 2, **rates}, "full": rates},
        sampler="random",
        train={"batch_size": 8, "micro_batch_size": 1},
        resources={"full": {"workers": 8}, **resources},
    )


def held(config: SweepConfig) -> dict[str, dict[str, float]]:
    return {recipe: held_by_worker(config, recipe, CLUSTER) for recipe in config.search.recipes}


class Run:
    """The search of a sweep, with endings at random moments."""

    def __init__(self, config: SweepConfig, cluster: dict[str, float] = CLUSTER) -> None:
        cluster = within_limit(config, cluster)
        make_trial = TrialMaker(config, "tiny", SweepFolder(Path("/sweeps/tiny")), cluster)
        self.searcher = OptunaSearcher(config, make_trial)
        placement = Placement({}, held(config))
        self.searcher.keep_within(Room(cluster, placement))
        self.running: dict[int, TrialRecord] = {}
        self.started: list[TrialConfig] = []
        self.most = 0.0
        self._chance = random.Random(7)

    def start_one(self) -> dict[str, Any] | str | None:
        """Start the next trial, if there is one and room for it."""
        suggestion = self.searcher.suggest("")
        if isinstance(suggestion, dict):
            config = TrialConfig.model_validate(suggestion["trial"])
            record = TrialRecord(config=config, params=suggestion["params"], started=0)
            self.running[config.number] = record
            self.started.append(config)
            held = [r.config.workers * r.config.gpus_per_worker for r in self.running.values()]
            self.most = max(self.most, sum(held))
        return suggestion

    def fill(self) -> dict[str, Any] | str | None:
        """Start trials until there is no room, or no more."""
        while isinstance(suggestion := self.start_one(), dict):
            pass
        return suggestion

    def end(self, number: int) -> None:
        record = self.running.pop(number)
        ended = record.ended_as(Outcome(status=TrialStatus.CANCELLED, reason="a test"), 2.0)
        self.searcher.trial_ended(ended)

    def end_one(self) -> None:
        """End one of those that run, in any way."""
        number = self._chance.choice(sorted(self.running))
        if self._chance.random() < 0.1:
            self.searcher.trial_interrupted(self.running.pop(number))
        else:
            self.end(number)


@pytest.mark.parametrize("limit", [20, None])
def test_trials_of_all_sizes_take_turns(limit: int | None) -> None:
    run = Run(sweep(max_gpus=limit))
    while run.fill() != Searcher.FINISHED:
        run.end_one()
    bound = limit or 64
    assert bound - 8 < run.most <= bound
    firsts = [c.number for c in run.started if c.output_dir.endswith("attempt_1")]
    assert firsts == list(range(60))  # none overtakes another
    assert {config.workers for config in run.started} == {1, 8}


def test_a_sweep_stays_within_max_gpus() -> None:
    config = sweep(max_gpus=4)
    limited = within_limit(config, CLUSTER)
    assert limited == {"CPU": 64.0, "GPU": 4.0}
    assert max_concurrent(config, limited) == 4
    with pytest.raises(UserError, match=r"asks for 8 GPUs .* may hold 4; .* raise resources"):
        check_resources(config, CLUSTER, [CLUSTER], [])
    assert within_limit(sweep(), CLUSTER) == CLUSTER


TYPED = {"lora": {"accelerator_type": "L40S"}, "full": {"workers": 8, "accelerator_type": "H"}}
TWO_TYPES = {"CPU": 64.0, "GPU": 12.0, "GPU:L40S": 4.0, "GPU:H": 8.0}


def recipes(run: Run) -> list[str]:
    return sorted(record.config.recipe for record in run.running.values())


def test_trials_that_wait_for_one_gpu_type_do_not_hold_up_those_of_another() -> None:
    run = Run(sweep(**TYPED), TWO_TYPES)
    while run.fill() != Searcher.FINISHED:
        # As full as can be for as long as there are trials of both to draw.
        if len(run.started) < 40:
            assert recipes(run) == ["full", *["lora"] * 4]
        run.end(min(run.running))
    assert {trial.number for trial in run.started} == set(range(60))
