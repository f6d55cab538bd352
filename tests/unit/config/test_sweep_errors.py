"""Each thing that can be wrong in a sweep file is one fault that a user can act on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_files import SWEEP, edited, only_fault

from tune.config.sweep_file import load_sweep

# What is set in the sweep of `sweep_files`, and below it the one fault that is told.
ONE_FAULT = r"""
search.lora.rank=[4, 0]
  search.lora.rank.1: must be >= 1, got 0
search.lora.rank=four
  search.lora.rank.0: must be a whole number, got 'four'
search.lora.rank=1.5
  search.lora.rank.0: must be a whole number, got 1.5
search.lora.rank=[4, true]
  search.lora.rank.1: must be a whole number, got true
eval.limit=true
  eval.limit: must be a whole number, got true
eval.retention=[{task: b, limit: true}]
  eval.retention.0.limit: must be a whole number, got true
train.max_grad_norm=false
  train.max_grad_norm: must be a number, got false
search.lora.learning_rate={low: 1e-5, high: true}
  search.lora.learning_rate.high: must be a number, got true
early_stopping={metrics: {in_domain/acc_mean: true}}
  early_stopping.metrics.in_domain/acc_mean: must be a number, got true
deepspeed={zero_stage: true}
  deepspeed.zero_stage: must be 0, 1, 2 or 3, got true
search.lora.rank=[]
  search.lora.rank: must hold at least 1 value, got []
eval.retention=null
  eval.retention: must be a list, got null; write [] for none
wandb={tags: [false]}
  wandb.tags.0: must be text, got false; put it in quotes
search.lora.rank=[4, 8, 4]
  search.lora.rank: values must be distinct, got 4 more than once
search.lora.learning_rate=[1e-4, 0]
  search.lora.learning_rate.1: must be > 0, got 0
search.lora.learning_rate={low: 0, high: 0.001}
  search.lora.learning_rate.low: must be > 0, got 0
search.lora.rank={low: 8, high: 64}
  search.lora.rank: must be a list, got {low: 8, high: 64}; write a list, such as [8, 64]
search.lora.rank={values: [8, 16]}
  search.lora.rank: must be a list, got {values: [8, 16]}; write a list, such as [8, 16]
search.lora.rank={distribution: categorical, values: [8, 16]}
  search.lora.rank: must be a list, got {distribution: 'categorical', values: [8, 16]}; write a
  list, such as [8, 16]
search.lora.rank={distribution: int_uniform, min: 1, max: 8}
  search.lora.rank: must be a list, got {distribution: 'int_uniform', min: 1, max: 8}; write a list,
  such as [1, 8]
search.lora.learning_rate={low: 0.001, high: 0.001}
  search.lora.learning_rate.low: must be below high, got 0.001 and 0.001
search.lora.learning_rate={low: 1e-5}
  search.lora.learning_rate.high: is required and absent
search.lora.learning_rate={low: 1e-5, hihg: 0.001}
  search.lora.learning_rate.hihg: unknown key; did you mean high?
search.lora.learning_rate=[.inf]
  search.lora.learning_rate.0: must be a finite number, got inf
resources={lora: {gpus_per_worker: 2}}
  resources.lora.gpus_per_worker: a worker trains on one GPU, got 2; set resources.lora.workers for
  a trial on several
resources={lora: {gpus_per_worker: 0.5, workers: 2}}
  resources.lora.gpus_per_worker: workers of one trial cannot share a GPU, got 0.5; set it to 1, or
  workers to 1
resources={lora: {gpus_per_worker: 1e-5}}
  resources.lora.gpus_per_worker: must be 0 or at least 0.0001, got 1e-05
resources={lora: {slots: many}}
  resources.lora.slots: must be a whole number >= 0, or auto, got 'many'
resources={lora: {slots: true}}
  resources.lora.slots: must be a whole number >= 0, or auto, got true
data.path=openai/gsm8k
data.validation_path=openai/gsm8k
  data.validation_path: holds the rows that are trained on, got openai/gsm8k (split train) for both;
  set validation_split, or leave it out for a validation_fraction of the rows
data.path=/rows.jsonl
data.validation_path=/rows.jsonl
  data.validation_path: holds the rows that are trained on, got /rows.jsonl for both; leave it out
  for a validation_fraction of the rows
data.validation_path=rows.jsonl
data.validation_split=test
  data.validation_split: is of a hub data set, and validation_path is none, got test; name one
  there, or leave the split out
data.answers=all
  data.answers: must be last without messages, got all; name the field that holds chats in messages,
  or leave it out
search.lora.alpha=16
  search.lora: give exactly one of alpha and alpha_ratio, got both; null takes one back
search.lora.alpha_ratio=null
  search.lora: give exactly one of alpha and alpha_ratio, got neither
search.lora.target_modules=[q_proj]
  search.lora.target_modules.0: must be all-linear or a list of module names, got 'q_proj'; a
  list of two reads [q_proj, v_proj], and [[q_proj, v_proj]] as the only choice
search.lora.target_modules=all_linear
  search.lora.target_modules.0: must be all-linear or a list of module names, got 'all_linear'; did
  you mean all-linear?
search.lora.target_modules=[all]
  search.lora.target_modules.0: must be all-linear or a list of module names, got 'all'; did you
  mean all-linear?
train.warmup=100
  train.warmup: must be < 1, got 100; it is a share of the steps
search.lora.warmup=[0.1, 100]
  search.lora.warmup.1: must be < 1, got 100; it is a share of the steps
data.validation_fraction=500
  data.validation_fraction: must be < 1, got 500; it is a share of the rows
search.lora.dropout=1.0
  search.lora.dropout.0: must be < 1, got 1.0
search.lora.rslora=perhaps
  search.lora.rslora.0: must be true or false, got 'perhaps'
search={}
  search: give a space for at least one method: lora, full
search.lora=5
  search.lora: must be a section with keys of its own, got 5; known: alpha, alpha_ratio, batch_size,
  dora, dropout, epochs, learning_rate, rank, rslora, target_modules, warmup, weight_decay
train=null
  train: must be a section with keys of its own, got null; fill it in or leave it out
data=null
  data: must be a section with keys of its own, got null; fill it in
trian={}
  trian: unknown key; did you mean train?
train.step=5
  train.step: unknown key; did you mean steps?
search.lora.Rank=[4]
  search.lora.Rank: unknown key; did you mean rank?
eval.in_domain=[{taks: a}]
  eval.in_domain.0.taks: unknown key; did you mean task?
wandb.zzz=1
  wandb.zzz: unknown key; known: entity, mode, project, tags
max_grad_norm=1.0
  max_grad_norm: unknown key; did you mean train.max_grad_norm?
weight_decay=0.1
  weight_decay: unknown key; did you mean train.weight_decay, search.lora.weight_decay or
  search.full.weight_decay?
train.seed=1
  train.seed: unknown key; did you mean seed at the top level?
train.1=2
  train.1: unknown key; known: batch_size, epochs, gradient_checkpointing, log_every, max_grad_norm,
  micro_batch_size, report_every, save_weights, schedule, steps, warmup, weight_decay
eval.in_domain=[5]
  eval.in_domain.0: must be a section with keys of its own, got 5; known: data_files, filter, limit,
  metric, name, num_fewshot, task
model=org/model
  model: must be a section with keys of its own, got 'org/model'; write {name: 'org/model'}
data=rows.jsonl
  data: must be a section with keys of its own, got 'rows.jsonl'; write {path: 'rows.jsonl'}
eval.in_domain={task: a}
  eval.in_domain: must be a list, got {task: 'a'}; write a list of such: a line for each, that
  begins with -
eval.in_domain=[{task: a, data_files: rows.jsonl}]
  eval.in_domain.0.data_files: must be a section with keys of its own, got 'rows.jsonl'; name its
  split, such as {test: 'rows.jsonl'}
eval.in_domain=a
  eval.in_domain: must be a list, got 'a'; write [a]
eval.ood=true
  eval.ood: must be a list, got true
constraints=forgetting/mean
  constraints: must be a list, got 'forgetting/mean'; such as [forgetting/mean <= 0.05], or [] for
  none
early_stopping={metrics: [in_domain/acc_mean]}
  early_stopping.metrics: must be a section with keys of its own, got ['in_domain/acc_mean']; such
  as {in_domain/acc_mean: 1, forgetting/mean: -1}
eval.ood=5
  eval.ood: must be a list, got 5; write [5]
eval.in_domain=[{task: a, num_fewshot: -1}]
  eval.in_domain.0.num_fewshot: must be >= 0, got -1
eval.in_domain=[{task: a, name: x/y}]
  eval.in_domain.0.name: must hold only letters, digits, _ . and -, got 'x/y'
eval.in_domain=[{task: a, data_files: {test: 5}}]
  eval.in_domain.0.data_files.test: must be text, got 5; write "5"
data.path=[a.jsonl, b.jsonl]
  data.path: must be text, got ['a.jsonl', 'b.jsonl']; write one alone, such as 'a.jsonl'
eval.retention=[a]
  eval: each task may stand in one role once, got a more than once; give one of them another `name`
name=a/b
  name: must begin with a letter or digit and hold only letters, digits, _ and -, got 'a/b'
name=2024
  name: must be text, got 2024; write "2024"
train.schedule=cosine_with_restarts
  train.schedule: must be constant, linear or cosine, got 'cosine_with_restarts'; did you
  mean cosine?
train.schedule=cosin
  train.schedule: must be constant, linear or cosine, got 'cosin'; did you mean cosine?
deepspeed.zero_stage=4
  deepspeed.zero_stage: must be 0, 1, 2 or 3, got 4
train.batch_size=6
  train.batch_size: must be a multiple of train.micro_batch_size x resources.lora.workers = 4, got
  6; set train.micro_batch_size to 2
resources.lora.workers=3
  train.batch_size: must be a multiple of train.micro_batch_size x resources.lora.workers = 12, got
  16; raise it to 24
search.lora.batch_size=[16, 18]
  search.lora.batch_size: must be a multiple of train.micro_batch_size x resources.lora.workers = 4,
  got 18; set train.micro_batch_size to 2
train.batch_size=18
resources.lora.workers=6
  train.batch_size: must be a multiple of train.micro_batch_size x resources.lora.workers = 24, got
  18; set train.micro_batch_size to 1
train.report_every=1.5
  train.report_every: must be a whole number of steps or a share below 1, got 1.5
deepspeed={offload_parameters: true}
  deepspeed.offload_parameters: needs zero_stage 3, got 2
objectives=[]
  objectives: must hold at least 1 value, got []; such as [{metric: validation/loss, mode: min},
  {metric: forgetting/mean, mode: min}], or with tasks in eval.in_domain {metric:
  in_domain/acc_mean, mode: max}
objectives=[{metric: forgetting/maen, mode: min}]
  objectives.0.metric: nothing logs forgetting/maen; did you mean forgetting/mean?
objectives=[{metric: acc_mean, mode: max}]
  objectives.0.metric: nothing logs acc_mean; did you mean in_domain/acc_mean or retention/acc_mean?
objectives=validation/loss
  objectives: must be a list, got 'validation/loss'; such as [{metric: validation/loss, mode: min},
  {metric: forgetting/mean, mode: min}], or with tasks in eval.in_domain {metric:
  in_domain/acc_mean, mode: max}
eval.in_domain=[]
objectives=[{metric: in_domain/acc_mean, mode: max}]
  objectives.0.metric: nothing logs in_domain/acc_mean; it needs tasks in eval.in_domain; without
  any, name validation/loss, the lower the better
eval.in_domain=[]
objectives=[{metric: forgetting/mean, mode: min}]
constraints=[in_domain/acc_mean >= 0.8]
  constraints.0: nothing logs in_domain/acc_mean; it needs tasks in eval.in_domain; without any,
  name validation/loss, the lower the better
eval.in_domain=[]
objectives=[{metric: forgetting/mean, mode: min}]
early_stopping={metrics: {in_domain/acc_mean: 1}}
  early_stopping.metrics: nothing logs in_domain/acc_mean; it needs tasks in eval.in_domain; without
  any, name validation/loss, the lower the better
eval.in_domain=[]
objectives=[{metric: forgetting/mean, mode: min}]
eval.ood=[c]
constraints=[ood/gap <= 0.1]
  constraints.0: nothing logs ood/gap; it needs tasks in eval.in_domain
eval.in_domain=[]
objectives=[{metric: forgetting/mean, mode: min}]
data.validation_fraction=0
  data.validation_fraction: must be above 0, as eval.in_domain has no tasks, got 0; raise it, or
  name a data.validation_path
eval.retention=[]
objectives=[{metric: forgetting/mean, mode: min}]
  objectives.0.metric: nothing logs forgetting/mean; it needs tasks in eval.retention
objectives=[{metric: ood/acc_mean, mode: max}]
  objectives.0.metric: nothing logs ood/acc_mean; it needs tasks in eval.ood
objectives=[{metric: forgetting/nll, mode: min}]
  objectives.0.metric: nothing logs forgetting/nll; it needs eval.general_text
constraints=[memory/max_reserved_gib <= 40]
resources={lora: {slots: 4}}
  constraints.0: nothing logs memory/max_reserved_gib; it needs resources.lora.slots: 0, as trials
  in slots share their memory
constraints=[retention/ratio_mean >= 1.5, forgetting/mean <= 5]
  constraints.1: forgetting/mean is a share, of 1 at most, got forgetting/mean <= 5; write 0.05 for
  5 points
objectives.0={metric: forgetting/mean, mode: min}
  objectives.1.metric: each objective must be another metric, got forgetting/mean again
objectives=[{metric: in_domain/acc_mean, mode: min}]
  objectives.0.mode: in_domain/acc_mean is better the higher it is, got min; write max
objectives=[{metric: forgetting/b, mode: max}]
  objectives.0.mode: forgetting/b is better the lower it is, got max; write min
eval.retention=[b, {task: c, name: max}]
  eval.retention.1.name: must not be max, whose forgetting would be logged as another metric,
  forgetting/max; give the task another
early_stopping.metrics={in_domain/acc_mean: 2, forgetting/mean: 0.5}
  early_stopping.metrics: forgetting/mean is better the lower it is, got weight 0.5; write -0.5
early_stopping.metrics={in_domain/acc_mean: -1}
  early_stopping.metrics: in_domain/acc_mean is better the higher it is, got weight -1; write 1
early_stopping.metrics={in_domain/acc_mean: 1, flips/b/gained: -0.5}
  early_stopping.metrics: flips/b/gained is better the higher it is, got weight -0.5; write 0.5
early_stopping.metrics={in_domain/acc_mean: 1, forgetting/mean: 0}
  early_stopping.metrics: must not weigh forgetting/mean by 0, got 0; leave it out
search.lora.target_modules=[[q_proj, v_proj], [v_proj, q_proj]]
  search.lora.target_modules: values must be distinct, got ('q_proj', 'v_proj') more than once
objectives=[{metric: forgetting/mean}]
  objectives.0.mode: is required and absent; write min or max
constraints=[forgetting/mean = 0.05]
  constraints.0: must read `metric <= number` (or <, >=, >), got 'forgetting/mean = 0.05'
constraints=[forgetting/mean <= little]
  constraints.0: must read `metric <= number` (or <, >=, >), got 'forgetting/mean <= little'
constraints=[forgetting/men <= 0.05]
  constraints.0: nothing logs forgetting/men; did you mean forgetting/mean?
sampler=grid
  search.lora.learning_rate: a grid needs a list of values, got a range; write [1e-4, 3e-4, 1e-3] or
  choose another sampler
sampler=nsga2
search.full={learning_rate: [1e-5, 1e-4]}
  sampler: nsga2 searches one method, got lora and full; take tpe, or search one method
model.load_in_4bit=true
search.full={learning_rate: [1e-5, 1e-4]}
  search.full: must be null, as weights of 4 bits are not trained, got model.load_in_4bit: true;
  search it in a sweep of its own, without load_in_4bit
budget.minutes_per_report=.inf
  budget.minutes_per_report: must be a finite number, got inf
early_stopping.metrics={in_domain/acc_mean: .nan}
  early_stopping.metrics.in_domain/acc_mean: must be a finite number, got nan
early_stopping.reduction_factor=.inf
  early_stopping.reduction_factor: must be a finite number, got inf
resources.lora.gpus_per_worker=.nan
  resources.lora.gpus_per_worker: must be a finite number, got nan
wandb.project=me/forgetting-sweeps
  wandb.project: must hold none of / \ # ? % :, got me/forgetting-sweeps; of ENTITY/PROJECT, the
  entity belongs in wandb.entity
confirm.seed=3
  confirm.seed: unknown key; did you mean seeds?
seed=4294967296
  seed: must be < 2147483648, got 4294967296
"""
CASES = [
    (settings.splitlines(), " ".join(told.split()))
    for settings, told in re.findall(r"((?:\S.*\n)+)((?:  .*\n)+)", ONE_FAULT)
]
OBJECTIVES = (
    "such as [{metric: validation/loss, mode: min}, {metric: forgetting/mean, mode: min}], or with "
    "tasks in eval.in_domain {metric: in_domain/acc_mean, mode: max}"
)


def one_fault(file: Path, *overrides: str) -> str:
    return str(replace(only_fault(file, *overrides), location=""))


@pytest.mark.parametrize(("settings", "told"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_one_thing_wrong_is_one_fault_with_field_rule_value_and_remedy(
    settings: list[str], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP)
    assert one_fault(file, *settings) == told


@pytest.mark.parametrize(
    ("setting", "longest"), [("name=", 64), ("wandb.tags.0=", 64), ("wandb.project=", 128)]
)
def test_a_long_text_is_refused_and_shown_in_part(
    setting: str, longest: int, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(wandb={"tags": ["a"]}))
    load_sweep(str(file), [setting + "a" * longest])
    rule = only_fault(file, setting + "a" * (longest + 1)).rule
    assert f"{longest} characters, got " in rule
    assert "a" * 60 not in rule  # it is cut


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"eval": ...},
            "eval: is required and absent; such as {retention: [mmlu, hellaswag], limit: 100}, or "
            "{} for no tasks",
        ),
        ({"model": ...}, "model: is required and absent"),
        ({"model__name": ...}, "model.name: is required and absent"),
        ({"objectives": ...}, f"objectives: is required and absent; {OBJECTIVES}"),
        (  # and not that the latter is absent
            {"search__rank": [4], "search__lora__rank": ...},
            "search.rank: unknown key; did you mean search.lora.rank?",
        ),
    ],
)
def test_what_is_required_and_absent_is_told(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(**changes))
    assert one_fault(file) == told


@pytest.mark.parametrize(
    ("field", "refused", "taken"),
    [
        ("seed", -1, 0),
        ("budget.trials", 0, 1),
        ("budget.hours", 0, 0.1),
        ("budget.gpu_hours", 0, 0.1),
        ("budget.retries", -1, 0),
        ("budget.minutes_per_report", 0, 0.1),
        ("budget.checkpoint_gib", 0, 0.1),
        ("resources.full.workers", 0, 1),
        ("resources.full.gpus_per_worker", -1, 0),
        ("resources.full.cpus_per_worker", 0, 0.1),
        ("resources.full.accelerator_type", '""', "A"),
        ("resources.lora.slots", -1, 0),
        ("resources.max_concurrent", 0, 1),
        ("resources.max_gpus", -1, 0),
        ("early_stopping.reduction_factor", 1, 1.1),
        ("early_stopping.first_rung", 0, 0.1),
        ("early_stopping.first_rung", 1, 0.75),
        ("early_stopping.loss_limit", 1, 1.1),
        ("early_stopping.metrics", "{}", "{in_domain/acc_mean: 1}"),
        ("confirm.top_k", 0, 1),
        ("confirm.seeds", 0, 1),
        ("search.full.batch_size", 0, 4),
        ("search.full.epochs", 0, 0.1),
        ("search.full.warmup", -0.1, 0),
        ("search.full.weight_decay", -0.1, 0),
    ],
)
def test_numbers_are_taken_from_their_bounds_on(
    field: str, refused: object, taken: object, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    resources = {"lora": {"accelerator_type": "A"}} if field.endswith("accelerator_type") else {}
    file.write_text(edited(search__full={"learning_rate": 1e-5}, resources=resources))
    fault = only_fault(file, f"{field}={refused}")
    assert fault.field.startswith(field)
    assert fault.rule.startswith("must ")
    load_sweep(str(file), [f"{field}={taken}"])
