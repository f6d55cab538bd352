"""Reads sweeps, also while they run, and shows what is in them. Never imports Ray.

    __main__          the commands
    watch             a running sweep
    report            one HTML page, and the same in other formats
    figures           for a paper
    export            the winner, to use
    gate              whether a model meets criteria, for continuous integration
    tracking          W&B: views and tables there, runs from there
    frame             sweeps as pandas frames
    capacity_axis     what curves over capacities are drawn over
    recipe_marks      colours and symbols of recipes
    inspect_models    what changed inside the models
    conclusions       sentences, each with its evidence
    paper_table       recipe and capacity by task
    matched_accuracy  forgetting of recipes at one accuracy in the domain
    shown_sweeps      what all of these show, computed once
    item_comparison   answers item by item
    comparability     warnings where sweeps that differ are shown together
    sweeps            trials and base, read from disk
    sweep_settings    the settings of a sweep
    stats             intervals and tests
    results           the Pareto front, the trial to take, tables; loads no pandas
    library_logging   keeps libraries from writing to the terminal

Each imports only those below it.
"""
