"""Optuna, tried with 5.0 and 5.1."""

from __future__ import annotations

import optuna


def generation_key() -> str:
    """The key under which NSGA-II keeps a trial's generation.

    Why: trials that are added from records, instead of asked for, have no generation, and a study
    that was rebuilt would go on with other points. Upstream: not reported.
    """
    return str(optuna.samplers.NSGAIISampler._get_generation_key())


def newest_trial(study: optuna.Study) -> optuna.Trial:
    """The trial that was last added, to which its result can be reported.

    Why: `add_trial` returns nothing, and a running trial that was added gets its result in no
    other way. Upstream: not reported.
    """
    return optuna.Trial(study, study.get_trials(deepcopy=False)[-1]._trial_id)
