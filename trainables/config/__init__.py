"""Configuration of a trial, `TrialConfig`, and the parts that it shares with a sweep file."""

from trainables.config.eval_config import ROLES, EvalSuite, EvalTask, Role
from trainables.config.frozen import Frozen
from trainables.config.model_and_data import DataConfig, ModelConfig, ModelShape, Replay
from trainables.config.objectives import ConfirmConfig, Constraint, Objective
from trainables.config.train_config import DeepSpeedConfig, LoraConfig, TrainConfig
from trainables.config.trial_config import BaseRequirements, Method, TrialConfig

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
    "LoraConfig",
    "Method",
    "ModelConfig",
    "ModelShape",
    "Objective",
    "Replay",
    "Role",
    "TrainConfig",
    "TrialConfig",
]
