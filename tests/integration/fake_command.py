"""The command, with trials that only pretend to train: `python fake_command.py ARGUMENTS`."""

from __future__ import annotations

import sys
from functools import partial

import fake_sweep
from ray import cloudpickle

import tune.sweep
from tune.cli import main
from tune.cluster import ray_cluster

if __name__ == "__main__":
    cloudpickle.register_pickle_by_value(fake_sweep)  # workers have no folder of tests
    fake_sweep.PAUSE_S = 0.3
    tune.sweep.Sweep = partial(tune.sweep.Sweep, trainable=fake_sweep.fake_trial)  # type: ignore
    ray_cluster._HEAD_IS_LOST_AFTER_S = 3.0
    sys.exit(main(sys.argv[1:]))
