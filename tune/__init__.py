"""The sweep: which trials run, where, and what becomes of them. Never imports torch.

    run, cli           the command
    terminal           what a user sees
    tracking           W&B
    sweep              all that is below, put together under Tune
    cluster            the Ray cluster: its nodes, the base's evaluation, hosts of packed trials
    search             which trial comes next, and which ends early
    folder             who may write in the sweep's folder, and what is written
    resources          what trials hold of a cluster
    tune_events        Tune's callbacks as events of the sweep
    config             the sweep file, validated
    stops_by_hand      trials that the user ends one by one
    listeners          the events of a sweep
    process_signals    Ctrl-C, SIGTERM, SIGHUP

Each imports only those below it. `sweeps` has the bundled sweep files.
"""
