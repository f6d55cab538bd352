"""Trials take turns within what a sweep may hold, those of many GPUs as well as those of one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_config
from ray.tune.search import Searcher

from trainables.config import Method, TrialConfig
from trainables.errors import UserError
from trainables.results.ledger import Ledger
from trainables.results.records import Outcome, TrialRecord, TrialStatus
from tune.capacity import check_resources, held_by_worker, max_concurrent, within_limit
from tune.placement import Placement, Room
from tune.search_space import Params
from tune.searcher import OptunaSearcher
from tune.sweep_config import SweepConfig
from tune.trials import make_trial

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


def held(config: SweepConfig) -> dict[Method, dict[str, float]]:
    return {method: held_by_worker(config, method, CLUSTER) for method in config.search.methods}


class Run:
    """The search of a sweep, with endings at random moments."""

    def __init__(self, config: SweepConfig) -> None:
        cluster = within_limit(config, CLUSTER)
        ledger = Ledger(Path("/sweeps/tiny"))

        def make(number: int, params: Params, attempt: int, seed: int) -> TrialConfig:
            return make_trial(config, "tiny", ledger, cluster, number, params, attempt, seed)

        self.searcher = OptunaSearcher(config, make)
        placement = Placement({}, held(config), has_slots=False)
        self.searcher.keep_within(Room(cluster, placement.holds))
        self.running: dict[int, TrialRecord] = {}
        self.started: list[TrialConfig] = []
        self.most = 0.0
        self._chance = random.Random(7)

    def fill(self) -> str | None:
        """Start trials until there is no room, or no more."""
        while isinstance(suggestion := self.searcher.suggest(""), dict):
            config = TrialConfig.model_validate(suggestion["trial"])
            record = TrialRecord(config=config, params=suggestion["params"], started=0)
            self.running[config.number] = record
            self.started.append(config)
            held = [r.config.workers * r.config.gpus_per_worker for r in self.running.values()]
            self.most = max(self.most, sum(held))
        return suggestion

    def end_one(self) -> None:
        number = self._chance.choice(sorted(self.running))
        record = self.running.pop(number)
        if self._chance.random() < 0.1:
            self.searcher.trial_interrupted(record)
        else:
            ended = record.ended_as(Outcome(status=TrialStatus.FAILED, reason="a test"))
            self.searcher.trial_ended(ended)


@pytest.mark.parametrize("limit", [8, 20, None])
def test_trials_of_all_sizes_take_turns(limit: int | None) -> None:
    run = Run(sweep(max_gpus=limit))
    while run.fill() != Searcher.FINISHED:
        run.end_one()
    bound = limit or 64
    assert bound - 8 < run.most <= bound
    firsts = [c.number for c in run.started if c.output_dir.endswith("attempt_1")]
    assert firsts == list(range(60))  # none overtakes another
    assert {config.workers for config in run.started} == {1, 8}


def test_a_point_that_never_had_room_is_told_to_nobody(tmp_path: Path) -> None:
    run = Run(sweep(max_gpus=8))
    run.fill()
    while run.searcher._drawn is None:
        run.end_one()
        run.fill()
    run.searcher.sweep_ended(list(run.running.values()))
    run.searcher.export(tmp_path / "study.journal")
    assert "tiny" in (tmp_path / "study.journal").read_text()
    asked = set(run.searcher._study._asked)
    assert asked == set(run.running)


def test_a_limit_is_all_that_a_sweep_sees_of_a_cluster() -> None:
    config = sweep(max_gpus=4)
    limited = within_limit(config, CLUSTER)
    assert limited == {"CPU": 64.0, "GPU": 4.0}
    assert max_concurrent(config, limited) == 4
    with pytest.raises(UserError, match=r"asks for 8 GPUs .* may hold 4; raise resources.max_gpus"):
        check_resources(config, limited, [CLUSTER])
    assert within_limit(sweep(), CLUSTER) == CLUSTER


def test_trials_of_each_type_of_gpu_take_turns_among_themselves() -> None:
    run = Run(sweep())
    run.fill()
    typed = sweep(lora={"accelerator_type": "L40S"}, full={"workers": 8, "accelerator_type": "H"})
    placement = Placement({"driver": 1e-4}, held(typed), has_slots=False)
    lora = next(trial for trial in run.started if trial.method == "lora")
    full = next(trial for trial in run.started if trial.method == "full")
    assert placement.holds(full) == {"CPU": 8, "GPU": 8, "GPU:H": 8}
    (bundle,) = placement({"trial": lora.model_dump(mode="json")}).bundles
    assert bundle == {"CPU": 1, "GPU": 1, "accelerator_type:L40S": 1e-4}
    workers = placement({"trial": full.model_dump(mode="json")}).bundles[1:]
    assert workers == [{"CPU": 1, "GPU": 1, "accelerator_type:H": 1e-4}] * 8
    room = Room({"CPU": 64, "GPU": 12, "GPU:L40S": 4, "GPU:H": 8}, placement.holds)
    numbered = [lora.model_copy(update={"number": number}) for number in range(5)]
    assert [room.take(trial) for trial in numbered] == [True] * 4 + [False]
    assert room.take(full)


def test_what_only_waits_reserves_a_sliver() -> None:
    config = sweep(lora={"slots": 4})
    run = Run(config)
    run.fill()
    placement = Placement({"driver": 1e-4}, held(config), has_slots=True)
    for trial in run.started[:10]:
        group = placement({"trial": trial.model_dump(mode="json")})
        assert group.bundles[0] == {"driver": 1e-4}
        assert placement.holds(trial) == (
            {"CPU": 8.0, "GPU": 8.0} if trial.method == "full" else {}
        )
