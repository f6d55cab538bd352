"""Reads sweeps, also while they run, and shows what they say. Never imports Ray.

    __main__     the commands
    watch        a running sweep
    report       one HTML page, and the same in other formats
    figures      for a paper
    export       the winner, to use
    frame        sweeps as pandas frames
    tracking     W&B: views and tables there, runs from there
    inspect_models  what changed inside the models
    conclusions  sentences, each with its evidence
    paper_table  method and rank by task
    results      the front, the recommendation, repeats; `shown_sweeps` computes them once
    item_comparison  answers item by item
    comparability    warnings about sweeps that differ
    sweeps       trials and base, read from disk; `sweep_settings` is what was asked of them
    stats        intervals and tests

Each imports only those below it.
"""
