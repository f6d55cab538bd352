"""Each thing that can be wrong in a sweep file is one fault that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_files import SWEEP, edited, only_fault

LOSSES = "objectives=[{metric: forgetting/mean, mode: min}]"
# Settings on top of the sweep in `sweep_files`, the field at fault, and what its message says.
TABLE = r"""
search.lora.rank=[4, 0] | search.lora.rank.1 | >= 1 | got 0
search.lora.rank=four | search.lora.rank.0 | whole number | 'four'
search.lora.rank=[] | search.lora.rank | at least 1 value
search.lora.rank=[4, 8, 4] | search.lora.rank | distinct | 4
eval.retention=null | eval.retention | list | write []
eval.in_domain=a | eval.in_domain | list | write [a]
name=2024 | name | text | write "2024"
name=a/b | name | letters, digits, _ and - | 'a/b'
search.lora.rank={low: 8, high: 64} | search.lora.rank | such as [8, 16]
search.lora.learning_rate={low: 0, high: 0.001} | search.lora.learning_rate.low | > 0
search.lora.learning_rate={low: 0.1, high: 0.1} | search.lora.learning_rate.low | below high | 0.1
search.lora.learning_rate={low: 1e-5} | search.lora.learning_rate.high | required
search.lora.alpha=16 | search.lora | alpha and alpha_ratio | both
search.lora.target_modules=[q_proj] | search.lora.target_modules.0 | 'q_proj' | [q_proj, v_proj]
search.lora.target_modules=all_linear | search.lora.target_modules.0 | did you mean all-linear?
train.warmup=100 | train.warmup | < 1 | share of the steps
data.validation_fraction=500 | data.validation_fraction | < 1 | share of the rows
search={} | search | at least one recipe
search.lora=5 | search.lora | section | known: alpha, alpha_ratio
train=null | train | section | leave it out
model=org/model | model | section | write {name: 'org/model'}
train.step=5 | train.step | did you mean steps?
wandb.zzz=1 | wandb.zzz | known: entity, mode, project, tags
max_grad_norm=1.0 | max_grad_norm | did you mean train.max_grad_norm?
confirm.seed=3 | confirm.seed | did you mean seeds?
eval.retention=[a] | eval | once | a | `name`
train.schedule=cosine_with_restarts | train.schedule | linear or cosine | did you mean cosine?
deepspeed.zero_stage=4 | deepspeed.zero_stage | 0, 1, 2 or 3 | 4
deepspeed={offload_parameters: true} | deepspeed.offload_parameters | zero_stage 3 | 2
train.batch_size=6 | train.batch_size | = 4, got 6 | micro_batch_size to 2
resources.lora.workers=3 | train.batch_size | = 12, got 16 | raise it to 24
search.lora.replay_share=[0, 0.1] | search.lora.replay_share | data.replay | name the data to replay
search.lora.batch_size=[16, 18] | search.lora.batch_size | = 4, got 18
train.report_every=1.5 | train.report_every | whole number of steps | 1.5
resources={lora: {gpus_per_worker: 2}} | resources.lora.gpus_per_worker | one GPU | lora.workers
resources={lora: {gpus_per_worker: 0.5, workers: 2}} | resources.lora.gpus_per_worker | share
resources={lora: {slots: many}} | resources.lora.slots | auto | 'many'
data.path=a/b && data.validation_path=a/b | data.validation_path | trained on | validation_split
data.validation_path=rows.jsonl && data.validation_split=test | data.validation_split | hub | test
data.answers=all | data.answers | messages | all
eval.in_domain=[] && LOSSES && data.validation_fraction=0 | data.validation_fraction | above 0
objectives=[{metric: forgetting/mean}] | objectives.0.mode | required | min or max
objectives=[{metric: forgetting/maen, mode: min}] | objectives.0.metric | mean forgetting/mean?
objectives=[{metric: ood/acc_mean, mode: max}] | objectives.0.metric | eval.ood
objectives=[{metric: forgetting/nll, mode: min}] | objectives.0.metric | eval.general_text
eval.in_domain=[] && LOSSES && constraints=[in_domain/acc_mean > 0] | constraints.0 | in_domain
eval.retention=[] && LOSSES | objectives.0.metric | eval.retention
resources={lora: {slots: 4}} && constraints=[memory/max_reserved_gib < 9] | constraints.0 | slots: 0
objectives.0={metric: forgetting/mean, mode: min} | objectives.1.metric | forgetting/mean again
objectives=[{metric: in_domain/acc_mean, mode: min}] | objectives.0.mode | got min | write max
objectives=[{metric: forgetting/b, mode: max}] | objectives.0.mode | got max | write min
constraints=[retention/ratio_mean >= 1.5, forgetting/mean <= 5] | constraints.1 | share | write 0.05
constraints=[forgetting/mean = 0.05] | constraints.0 | metric <= number
early_stopping.metrics={forgetting/mean: 0.5} | early_stopping.metrics | got weight 0.5 | write -0.5
rewind.strengths=[0, 0.5] | rewind.strengths | above 0 and at most 1.5 | got 0
rewind.strengths=[0.5, 2] | rewind.strengths | above 0 and at most 1.5 | got 2
rewind.strengths=[0.5, 0.50] | rewind.strengths | 0.5 more than once | leave one out
rewind.repair=[seed_mean] | rewind.repair | other seeds | set confirm
rewind.repair=[intruders] | rewind.repair.0 | no_intruders or seed_mean | intruders
rewind.strength=[0.5] | rewind.strength | did you mean strengths?
sampler=grid | search.lora.learning_rate | list | got a range
sampler=nsga2 | sampler | tpe, random or grid | nsga2
model.load_in_4bit=true && search.full={learning_rate: 1e-5} | search.full | load_in_4bit
wandb.project=me/sweeps | wandb.project | me/sweeps | wandb.entity
seed=4294967296 | seed | < 2147483648
"""
CASES = [line.split(" | ") for line in TABLE.strip().replace("LOSSES", LOSSES).splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP)
    return file


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_fault_names_field_rule_value_and_remedy(case: list[str], file: Path) -> None:
    settings, field, *facts = case
    fault = only_fault(file, *settings.split(" && "))
    assert fault.field == field
    message = f"{fault.rule}; {fault.remedy}"
    assert [fact for fact in facts if fact not in message] == []


@pytest.mark.parametrize(
    ("changes", "field", "fact"),
    [
        ({"eval": ...}, "eval", "{} for no tasks"),
        ({"model__name": ...}, "model.name", "required"),
        ({"objectives": ...}, "objectives", "in_domain/acc_mean"),
        (  # and not that the latter is missing
            {"search__rank": [4], "search__lora__rank": ...},
            "search.rank",
            "did you mean search.lora.rank?",
        ),
    ],
)
def test_a_missing_key_is_named(changes: dict[str, Any], field: str, fact: str, file: Path) -> None:
    file.write_text(edited(**changes))
    fault = only_fault(file)
    assert fault.field == field
    assert fact in str(fault)
