"""The Tune-facing side of a trial; the only package of this project's trials that imports Ray.

The heavy libraries are imported where a worker needs them, so that the driver never loads them.
"""
