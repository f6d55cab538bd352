"""Warnings about sweeps that differ."""

from __future__ import annotations

from typing import Any

import pytest
from builders import change_base, change_config
from synthetic_sweep import SyntheticSweep

from analysis.comparability import notices
from analysis.sweeps import open_sweeps
from trainables.records.ledger import Ledger

KL = "do not compare their kl/base_to_tuned or forgetting/nll"
MAY_EXPLAIN = "this may explain differences between their trials"


def notices_of(
    folder, base: dict[str, Any], inputs: tuple[dict[str, str], dict[str, str]], **config: Any
) -> list[str]:
    """Of two sweeps that are alike but for these changes of the second."""
    folders = [SyntheticSweep(trials=1, items=4, name=n).write(folder / n) for n in ("a", "b")]
    for ledger, own in zip(map(Ledger, folders), inputs, strict=True):
        ledger.write_sweep(ledger.sweep().model_copy(update={"inputs": own}))
    second = Ledger(folders[1])
    for section, changes in config.items():
        before = second.sweep().config[section]
        is_section = isinstance(before, dict)
        change_config(second, **{section: before | changes if is_section else changes})
    change_base(second, **base)
    return notices(open_sweeps(folders))


@pytest.mark.parametrize(
    ("base", "digests", "config", "facts"),
    [
        ({}, {}, {}, None),
        ({"key": "other"}, {}, {"seed": 1}, ("seeds", "do not compare their KL or validation")),
        ({}, {}, {"objectives": [{"metric": "ood/acc_mean", "mode": "max"}]}, ("objectives", "a")),
        ({"general_nll": 3.9}, {}, {}, ("eval.general_text", "forgetting/nll")),
        ({"general_nll": 2.501}, {}, {}, None),  # rounding
        ({"general_nll": None}, {}, {}, None),
        ({}, {}, {"eval": {"kl_prompts": 8}}, ("eval.kl_prompts", KL)),
        ({}, {}, {"eval": {"kl_prompts": 0}}, None),
        ({}, {"data.path": "ab"}, {}, ("content of data.path", MAY_EXPLAIN)),
        ({}, {}, {"data": {"completion": "{{ x }}"}}, ("data.completion", MAY_EXPLAIN)),
        ({}, {}, {"train": {"weight_decay": 0.5}}, ("train.weight_decay", MAY_EXPLAIN)),
        ({}, {}, {"train": {"micro_batch_size": 8}}, None),  # changes no result
    ],
)
def test_a_notice_names_what_differs_and_what_does_not_compare(
    tmp_path, base, digests, config, facts
):
    inputs = tuple({field: both[i] for field, both in digests.items()} for i in range(2))
    found = notices_of(tmp_path, base, inputs, **config)
    assert len(found) == (facts is not None)
    assert all(fact in found[0] for fact in facts or ())
