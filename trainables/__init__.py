"""One trial, from its configuration to its records; what the sweep and the analysis share.

    config, errors, metric_keys, collector, redaction   the vocabulary of all others
    files       disks and object stores
    records     what trials leave on disk, and the ledger that keeps it
    results     the Pareto front, the trial to take, and how to put it
    process     memory, devices, and how long a process may be silent
    inputs      model and data
    evaluation  tasks, forgetting, drift
    training    LoRA and full fine-tuning: reports, checkpoints
    slots       many LoRA trials on one base
    inside      what training has changed in a model
    under_ray   all of it as Ray runs it; the only package that imports Ray
    embedded    the small model and the tasks of the quickstart

Each imports only those above it. None imports Optuna, or W&B.
"""
