"""The hypervolume: how much of the objective space a front dominates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume between the points and a worse reference point; every objective is minimised.

    Computed by slicing objectives (While et al. 2006): exact for any number of objectives, meant
    for a sweep's two or three objectives and few hundred trials.

    Args:
        points: objective values, [points, objectives]; dominated points add nothing.
        reference: one value per objective; points that are no better in some objective add
            nothing.
    """
    bound = np.asarray(reference, dtype=float)
    array = np.asarray(points, dtype=float).reshape(-1, bound.size)
    return _volume(array[(array < bound).all(axis=1)], bound)


def _volume(points: NDArray[np.float64], bound: NDArray[np.float64]) -> float:
    if len(points) == 0:
        return 0.0
    if bound.size == 1:
        return float(bound[0] - points.min())
    if bound.size == 2:
        return _area(points, bound)
    points = points[np.argsort(points[:, -1])]
    heights = np.append(points[:, -1], bound[-1])
    return sum(
        float(heights[i + 1] - heights[i]) * _volume(points[: i + 1, :-1], bound[:-1])
        for i in range(len(points))
    )


def _area(points: NDArray[np.float64], bound: NDArray[np.float64]) -> float:
    """Area above a staircase: the lowest second objective so far along the first one."""
    points = points[np.argsort(points[:, 0])]
    lowest = np.minimum.accumulate(points[:, 1])
    widths = np.diff(np.append(points[:, 0], bound[0]))
    return float((widths * (bound[1] - lowest)).sum())
