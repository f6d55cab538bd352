"""The sweep: which trials run, where, and what becomes of them. Never imports torch.

    run, command_line    the command
    what_next            what to type after it
    sweep                all that is below, put together under Tune
    terminal             what a user sees
    tracking             W&B
    cluster              the Ray cluster: its nodes, hosts of slots
    search               which trial comes next, and which ends early
    folder               who may write in the sweep's folder, and what is written
    resources            what trials hold of a cluster
    tune_events          Tune's callbacks as events of the sweep
    config               what a sweep file says, validated
    stops_by_hand        trials that the user ends one by one
    listeners, signals   events of a sweep; Ctrl-C and its like

Each imports only those below it. `sweeps` has the bundled sweep files.
"""
