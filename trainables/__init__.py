"""One trial, from its configuration to its records; what the sweep and the analysis share.

    config, errors, metric_keys   the words that all others speak in
    files       disks and object stores
    results     records and the ledger, the front, the trial to take
    process     memory, devices, and how long a process may be silent
    inputs      model and data
    evaluation  tasks, forgetting, drift
    training    LoRA and full fine-tuning: reports, checkpoints
    slots       many LoRA trials on one base
    inside      what training has changed in a model
    under_ray   all of it as Ray runs it; the only room that imports Ray
    embedded    the small model and the tasks of the quickstart

Each imports those above it alone. None knows the search, or W&B.
"""
