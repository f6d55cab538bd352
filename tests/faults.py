"""What a call refuses its input for."""

from __future__ import annotations

from typing import Any

import pytest

from trainables.errors import Fault, UserError


def faults(call: Any, *arguments: Any, **options: Any) -> list[Fault]:
    """The faults that the call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return caught.value.faults
