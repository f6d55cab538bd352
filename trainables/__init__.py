"""One trial, from its configuration to its records; what the sweep and the analysis share.

    workers      trials as Ray runs them; the only room that imports Ray
    post_steps   weights altered without more training
    packing      many LoRA trials on one base
    inspection   what training has changed in a model
    training     LoRA and full fine-tuning: reports, checkpoints
    evaluation   tasks, forgetting, drift
    data         rows, chats, templates, token ids
    models       the base: loading, adapters, checks
    process      memory, devices, and how long a process may be silent
    records      what trials leave on disk, and the ledger that keeps it
    storage      disks and object stores
    methods, losses   how a model is made trainable, and what it is trained to do
    tuners       adapters that PEFT does not have
    config, metric_keys, errors, gc_pause, redaction   the vocabulary of all others
    compat       patches and private names of libraries, one file a library
    embedded     the small model and the tasks of the quickstart

Each imports only those below it. None imports Optuna or W&B.
"""
