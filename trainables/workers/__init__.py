"""The Tune-facing side of a trial; the only package in `trainables` that imports Ray.

Heavy libraries are imported where a worker needs them, so that the driver never loads them.
"""
