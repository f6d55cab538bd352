"""A tiny model, the procedural tasks it was pretrained on, and a target it has never seen.

A sweep on them measures domain gain, forgetting and out-of-domain transfer on a laptop CPU, offline
and in seconds per trial. See README.md for the tasks and their base scores.
"""
