"""Configuration of a trial, `TrialConfig`, and the parts that it shares with a sweep file."""

from trainables.config.eval_config import ROLES, EvalSuite, EvalTask, Role
from trainables.config.model_and_data import DataConfig, ModelConfig, Replay
from trainables.config.objectives import ConfirmConfig, Constraint, Objective
from trainables.config.train_config import DeepSpeedConfig, TrainConfig
from trainables.config.trial_config import BaseRequirements, TrialConfig
from trainables.decoder_shape import ModelShape
from trainables.frozen import Frozen

__all__ = [
    "ROLES",
    "BaseRequirements",
    "ConfirmConfig",
    "Constraint",
    "DataConfig",
    "DeepSpeedConfig",
    "EvalSuite",
    "EvalTask",
    "Frozen",
    "ModelConfig",
    "ModelShape",
    "Objective",
    "Replay",
    "Role",
    "TrainConfig",
    "TrialConfig",
]
