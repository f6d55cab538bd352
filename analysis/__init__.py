"""Reads sweeps, also while they run, and shows what they say. Never imports Ray.

    __main__         the commands
    watch            a running sweep
    report           one HTML page, and the same in other formats
    figures          for a paper
    export           the winner, to use
    frame            sweeps as pandas frames
    inside           what changed inside the models
    tracking         W&B: views and tables there, runs from there
    conclusions      sentences, each with its evidence
    paper_table      the paper's table: method and rank by task
    results          what all of these show, computed once
    sweeps, items    what is read: trials and base, answers item by item
    stats            intervals and tests
"""
