"""Whether a multiple-choice question names a right answer."""

from __future__ import annotations

from collections.abc import Sequence

REMEDY = "give the right choice's index, counted from 0, or its text"


def names_a_choice(target: object, choices: Sequence[object]) -> bool:
    """Whether lm-evaluation-harness finds a right choice: by its index or text, or by several.

    It refuses any other target itself. For indices a `range` will do as the choices.
    """
    if isinstance(target, list):
        return any(names_a_choice(each, choices) for each in target)
    if isinstance(target, str):
        return target in choices
    return not isinstance(target, int) or 0 <= target < len(choices)
