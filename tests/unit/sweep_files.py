"""Small sweep files and their faults, for the tests of both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainables.errors import Fault, UserError
from tune.config.sweep_file import load_sweep

SWEEP = """\
name: tiny
model: {name: some/model}
data:
  path: rows.jsonl
eval:
  in_domain: [a]
  retention: [b]
search:
  lora:
    rank: [4, 8]
    alpha_ratio: 2
    learning_rate: {low: 1.0e-5, high: 1.0e-3}
objectives:
  - {metric: in_domain/acc_mean, mode: max}
  - {metric: forgetting/mean, mode: min}
train:
  batch_size: 16
  micro_batch_size: 4
"""
JARGON = re.compile(
    r"value error|input should|valid tuple|tuple|dictionary|instance of|pydantic|literal\["
    r"|function-|<range>|<list>|<unicode|NoneType|validat(?!ion[_/])",
    re.IGNORECASE,
)


def edited(**changes: Any) -> str:
    """The sweep with values put in: `search__lora__rank=[0]`; `...` removes."""
    raw = yaml.safe_load(SWEEP)
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = raw
        for part in parents:
            section = section.setdefault(part, {})
        if value is ...:
            del section[last]
        else:
            section[last] = value
    return yaml.safe_dump(raw, sort_keys=False)


def faults(file: Path, *overrides: str) -> list[Fault]:
    with pytest.raises(UserError) as caught:
        load_sweep(str(file), list(overrides))
    for fault in caught.value.faults:
        assert not JARGON.search(str(fault).replace(str(file.parent), "")), fault
        assert "\n" not in str(fault)
    return caught.value.faults


def only_fault(file: Path, *overrides: str) -> Fault:
    found = faults(file, *overrides)
    assert len(found) == 1, list(map(str, found))
    return found[0]
