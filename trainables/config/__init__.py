"""Configuration of a trial, `TrialConfig`, and of its parts, which a sweep file has too."""

from trainables.config.evaluation import ROLES, EvalSuite, EvalTask, Role
from trainables.config.frozen import Frozen
from trainables.config.goals import ConfirmConfig, Constraint, Objective
from trainables.config.inputs import DataConfig, ModelConfig, ModelShape, Replay
from trainables.config.training import DeepSpeedConfig, LoraConfig, TrainConfig
from trainables.config.trial import Demands, Method, TrialConfig

__all__ = [
    "ROLES",
    "ConfirmConfig",
    "Constraint",
    "DataConfig",
    "DeepSpeedConfig",
    "Demands",
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
