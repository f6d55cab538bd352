"""Each thing that can be wrong in a sweep file is one fault that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_files import edited, only_fault

from tune.config.sweep_file import load_sweep

# One thing wrong: field, rule with the value, remedy.
RANGE = {"low": 1e-3, "high": 1e-3}
INSTEAD = "without any, name validation/loss, the lower the better"
WITHOUT_DOMAIN: dict[str, Any] = {
    "eval__in_domain": ...,
    "objectives": [{"metric": "forgetting/mean", "mode": "min"}],
}
ONE_FAULT: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "rank 0": (
        {"search__lora__rank": [4, 0]},
        "search.lora.rank.1",
        "must be >= 1, got 0",
        "",
    ),
    "rank of text": (
        {"search__lora__rank": "four"},
        "search.lora.rank.0",
        "must be a whole number, got 'four'",
        "",
    ),
    "rank with a fraction": (
        {"search__lora__rank": 1.5},
        "search.lora.rank.0",
        "must be a whole number, got 1.5",
        "",
    ),
    "a rank that is on": (
        {"search__lora__rank": [4, True]},
        "search.lora.rank.1",
        "must be a whole number, got true",
        "",
    ),
    "a limit that is on": (
        {"eval__limit": True},
        "eval.limit",
        "must be a whole number, got true",
        "",
    ),
    "a task's limit that is on": (
        {"eval__retention": [{"task": "b", "limit": True}]},
        "eval.retention.0.limit",
        "must be a whole number, got true",
        "",
    ),
    "hours that are on": (
        {"budget": {"hours": True}},
        "budget.hours",
        "must be a number, got true",
        "",
    ),
    "a norm that is off": (
        {"train__max_grad_norm": False},
        "train.max_grad_norm",
        "must be a number, got false",
        "",
    ),
    "a batch that is on": (
        {"train__batch_size": True},
        "train.batch_size",
        "must be a whole number, got true",
        "",
    ),
    "a learning rate that is on": (
        {"search__lora__learning_rate": {"low": 1e-5, "high": True}},
        "search.lora.learning_rate.high",
        "must be a number, got true",
        "",
    ),
    "a weight that is on": (
        {"early_stopping": {"metrics": {"in_domain/acc_mean": True}}},
        "early_stopping.metrics.in_domain/acc_mean",
        "must be a number, got true",
        "",
    ),
    "a ZeRO stage that is on": (
        {"deepspeed": {"zero_stage": True}},
        "deepspeed.zero_stage",
        "must be 0, 1, 2 or 3, got true",
        "",
    ),
    "no rank to choose from": (
        {"search__lora__rank": []},
        "search.lora.rank",
        "must hold at least 1 value, got []",
        "",
    ),
    "tasks that are all commented out": (
        {"eval__retention": None},
        "eval.retention",
        "must be a list, got null",
        "write [] for none",
    ),
    "a tag that YAML takes for a flag": (
        {"wandb": {"tags": [False]}},  # as it takes no
        "wandb.tags.0",
        "must be text, got false",
        "put it in quotes",
    ),
    "a rank twice": (
        {"search__lora__rank": [4, 8, 4]},
        "search.lora.rank",
        "values must be distinct, got 4 more than once",
        "",
    ),
    "learning rate 0": (
        {"search__lora__learning_rate": [1e-4, 0]},
        "search.lora.learning_rate.1",
        "must be > 0, got 0",
        "",
    ),
    "learning rate range from 0": (
        {"search__lora__learning_rate": {"low": 0, "high": 1e-3}},
        "search.lora.learning_rate.low",
        "must be > 0, got 0",
        "",
    ),
    "a range of what has none": (
        {"search__lora__rank": {"low": 8, "high": 64}},
        "search.lora.rank",
        "must be a list, got {low: 8, high: 64}",
        "list what to choose from, such as [8, 64]",
    ),
    "learning rate range of one": (
        {"search__lora__learning_rate": RANGE},
        "search.lora.learning_rate.low",
        "must be below high, got 0.001 and 0.001",
        "",
    ),
    "half a range": (
        {"search__lora__learning_rate": {"low": 1e-5}},
        "search.lora.learning_rate.high",
        "is required and absent",
        "",
    ),
    "misspelt range": (
        {"search__lora__learning_rate": {"low": 1e-5, "hihg": 1e-3}},
        "search.lora.learning_rate.hihg",
        "unknown key",
        "did you mean high?",
    ),
    "infinite learning rate": (
        {"search__lora__learning_rate": [float("inf")]},
        "search.lora.learning_rate.0",
        "must be a finite number, got inf",
        "",
    ),
    "a worker of two GPUs": (
        {"resources": {"lora": {"gpus_per_worker": 2}}},
        "resources.lora.gpus_per_worker",
        "a worker trains on one GPU, got 2",
        "set resources.lora.workers for a trial on several",
    ),
    "workers that share a GPU": (
        {"resources": {"lora": {"gpus_per_worker": 0.5, "workers": 2}}},
        "resources.lora.gpus_per_worker",
        "workers of one trial cannot share a GPU, got 0.5",
        "set it to 1, or workers to 1",
    ),
    "a share that Ray does not count": (
        {"resources": {"lora": {"gpus_per_worker": 1e-5}}},
        "resources.lora.gpus_per_worker",
        "must be 0 or at least 0.0001, got 1e-05",
        "",
    ),
    "slots in words": (
        {"resources": {"lora": {"slots": "many"}}},
        "resources.lora.slots",
        "must be a whole number >= 0, or auto, got 'many'",
        "",
    ),
    "slots that are on": (
        {"resources": {"lora": {"slots": True}}},
        "resources.lora.slots",
        "must be a whole number >= 0, or auto, got true",
        "",
    ),
    "slots below none": (
        {"resources": {"lora": {"slots": -1}}},
        "resources.lora.slots",
        "must be a whole number >= 0, or auto, got -1",
        "",
    ),
    "validation on the training rows": (
        {"data__path": "openai/gsm8k", "data__validation_path": "openai/gsm8k"},
        "data.validation_path",
        "holds the rows that are trained on, got openai/gsm8k (split train) for both",
        "set validation_split, or leave it out for a validation_fraction of the rows",
    ),
    "validation on the file that is trained on": (
        {"data__path": "/rows.jsonl", "data__validation_path": "/rows.jsonl"},
        "data.validation_path",
        "holds the rows that are trained on, got /rows.jsonl for both",
        "leave it out for a validation_fraction of the rows",
    ),
    "a split of a file": (
        {"data__validation_path": "rows.jsonl", "data__validation_split": "test"},
        "data.validation_split",
        "is of a hub data set, and validation_path is none, got test",
        "name one there, or leave the split out",
    ),
    "all answers of what are no chats": (
        {"data__answers": "all"},
        "data.answers",
        "must be last without messages, got all",
        "name the field that holds chats in messages, or leave it out",
    ),
    "both alphas": (
        {"search__lora__alpha": 16},
        "search.lora",
        "give exactly one of alpha and alpha_ratio, got both",
        "null takes one back",
    ),
    "no alpha": (
        {"search__lora__alpha_ratio": ...},
        "search.lora",
        "give exactly one of alpha and alpha_ratio, got neither",
        "",
    ),
    "modules without their list": (
        {"search__lora__target_modules": ["q_proj"]},
        "search.lora.target_modules.0",
        "must be all-linear or a list of module names, got 'q_proj'",
        "one choice of two modules reads [[q_proj, v_proj]]",
    ),
    "all modules by another spelling": (
        {"search__lora__target_modules": "all_linear"},
        "search.lora.target_modules.0",
        "must be all-linear or a list of module names, got 'all_linear'",
        "did you mean all-linear?",
    ),
    "all modules as LLaMA-Factory has them": (
        {"search__lora__target_modules": ["all"]},
        "search.lora.target_modules.0",
        "must be all-linear or a list of module names, got 'all'",
        "did you mean all-linear?",
    ),
    "a warm-up in steps": (
        {"train__warmup": 100},
        "train.warmup",
        "must be < 1, got 100",
        "it is a share of the steps",
    ),
    "a searched warm-up in steps": (
        {"search__lora__warmup": [0.1, 100]},
        "search.lora.warmup.1",
        "must be < 1, got 100",
        "it is a share of the steps",
    ),
    "held-out rows by their number": (
        {"data__validation_fraction": 500},
        "data.validation_fraction",
        "must be < 1, got 500",
        "it is a share of the rows",
    ),
    "dropout of everything": (
        {"search__lora__dropout": 1.0},
        "search.lora.dropout.0",
        "must be < 1, got 1.0",
        "",
    ),
    "flag that is none": (
        {"search__lora__rslora": "perhaps"},
        "search.lora.rslora.0",
        "must be true or false, got 'perhaps'",
        "",
    ),
    "nothing to search": (
        {"search": {}},
        "search",
        "give a space for at least one method: lora, full",
        "",
    ),
    "section that is a number": (
        {"search__lora": 5},
        "search.lora",
        "must be a section with keys of its own, got 5",
        "known: alpha, alpha_ratio, batch_size, dora, dropout, epochs, learning_rate, rank, rslora,"
        " target_modules, warmup, weight_decay",
    ),
    "empty section": (
        {"train": None},
        "train",
        "must be a section with keys of its own, got null",
        "fill it in or leave it out",
    ),
    "empty section that is needed": (
        {"data": None},
        "data",
        "must be a section with keys of its own, got null",
        "fill it in",
    ),
    "no evaluation": (
        {"eval": ...},
        "eval",
        "is required and absent",
        "such as {retention: [mmlu, hellaswag], limit: 100}, or {} for no tasks",
    ),
    "misspelt section": ({"trian": {}}, "trian", "unknown key", "did you mean train?"),
    "misspelt key": ({"train__step": 5}, "train.step", "unknown key", "did you mean steps?"),
    "misspelt key in capitals": (
        {"search__lora__Rank": [4]},
        "search.lora.Rank",
        "unknown key",
        "did you mean rank?",
    ),
    "misspelt key of a method's space": (
        {"search__lora__aplha": 5},
        "search.lora.aplha",
        "unknown key",
        "did you mean alpha?",
    ),
    "misspelt key of a task": (
        {"eval__in_domain": [{"taks": "a"}]},
        "eval.in_domain.0.taks",
        "unknown key",
        "did you mean task?",
    ),
    "key like no other": (
        {"wandb__zzz": 1},
        "wandb.zzz",
        "unknown key",
        "known: entity, mode, project, tags",
    ),
    "key of another section": (
        {"max_grad_norm": 1.0},
        "max_grad_norm",
        "unknown key",
        "did you mean train.max_grad_norm?",
    ),
    "key of several sections": (
        {"weight_decay": 0.1},
        "weight_decay",
        "unknown key",
        "did you mean train.weight_decay, search.lora.weight_decay or search.full.weight_decay?",
    ),
    "key of a section within": (
        {"search__rank": [4], "search__lora__rank": ...},
        "search.rank",
        "unknown key",
        "did you mean search.lora.rank?",
    ),
    "key of no section": (
        {"train__seed": 1},
        "train.seed",
        "unknown key",
        "did you mean seed at the top level?",
    ),
    "number as a key": (
        {"train__1": 2},
        "train.1",
        "unknown key",
        "known: batch_size, epochs, gradient_checkpointing, log_every, max_grad_norm, "
        "micro_batch_size, report_every, save_weights, schedule, steps, warmup, weight_decay",
    ),
    "task that is a number": (
        {"eval__in_domain": [5]},
        "eval.in_domain.0",
        "must be a section with keys of its own, got 5",
        "known: data_files, filter, limit, metric, name, num_fewshot, task",
    ),
    "task outside a list": (
        {"eval__in_domain": "a"},
        "eval.in_domain",
        "must be a list, got 'a'",
        "write [a]",
    ),
    "role that is a flag": ({"eval__ood": True}, "eval.ood", "must be a list, got true", ""),
    "constraint outside a list": (
        {"constraints": "forgetting/mean"},
        "constraints",
        "must be a list, got 'forgetting/mean'",
        "such as [forgetting/mean <= 0.05], or [] for none",
    ),
    "metrics to stop by without weights": (
        {"early_stopping": {"metrics": ["in_domain/acc_mean"]}},
        "early_stopping.metrics",
        "must be a section with keys of its own, got ['in_domain/acc_mean']",
        "such as {in_domain/acc_mean: 1, forgetting/mean: -1}",
    ),
    "role that is a number": ({"eval__ood": 5}, "eval.ood", "must be a list, got 5", "write [5]"),
    "task with a negative number of shots": (
        {"eval__in_domain": [{"task": "a", "num_fewshot": -1}]},
        "eval.in_domain.0.num_fewshot",
        "must be >= 0, got -1",
        "",
    ),
    "task's name with a slash": (
        {"eval__in_domain": [{"task": "a", "name": "x/y"}]},
        "eval.in_domain.0.name",
        "must hold only letters, digits, _ . and -, got 'x/y'",
        "",
    ),
    "data file that is a number": (
        {"eval__in_domain": [{"task": "a", "data_files": {"test": 5}}]},
        "eval.in_domain.0.data_files.test",
        "must be text, got 5",
        'write "5"',
    ),
    "data of several files": (
        {"data__path": ["a.jsonl", "b.jsonl"]},
        "data.path",
        "must be text, got ['a.jsonl', 'b.jsonl']",
        "write one alone, such as 'a.jsonl'",
    ),
    "a task twice": (
        {"eval__retention": ["a"]},
        "eval",
        "each task may stand in one role once, got a more than once",
        "give one of them another `name`",
    ),
    "no model": ({"model": ...}, "model", "is required and absent", ""),
    "no model name": ({"model__name": ...}, "model.name", "is required and absent", ""),
    "name with a slash": (
        {"name": "a/b"},
        "name",
        "must begin with a letter or digit and hold only letters, digits, _ and -, got 'a/b'",
        "",
    ),
    "name that YAML reads as a number": (
        {"name": 2024},
        "name",
        "must be text, got 2024",
        'write "2024"',
    ),
    "long name": (
        {"name": "a" * 65},
        "name",
        f"must have at most 64 characters, got '{'a' * 59}...",
        "",
    ),
    "word that is none of the choices": (
        {"train__schedule": "cosin"},
        "train.schedule",
        "must be constant, linear or cosine, got 'cosin'",
        "did you mean cosine?",
    ),
    "number that is none of the choices": (
        {"deepspeed__zero_stage": 4},
        "deepspeed.zero_stage",
        "must be 0, 1, 2 or 3, got 4",
        "",
    ),
    "batch that micro-batches do not fill": (
        {"train__batch_size": 6},
        "train.batch_size",
        "must be a multiple of train.micro_batch_size x resources.lora.workers = 4, got 6",
        "set train.micro_batch_size to 2",
    ),
    "batch that workers do not fill": (
        {"resources__lora__workers": 3},
        "train.batch_size",
        "must be a multiple of train.micro_batch_size x resources.lora.workers = 12, got 16",
        "",
    ),
    "searched batch that micro-batches do not fill": (
        {"search__lora__batch_size": [16, 18]},
        "search.lora.batch_size",
        "must be a multiple of train.micro_batch_size x resources.lora.workers = 4, got 18",
        "set train.micro_batch_size to 2",
    ),
    "batch that micro-batches do not fill on any worker": (
        {"train__batch_size": 18, "resources__lora__workers": 6},
        "train.batch_size",
        "must be a multiple of train.micro_batch_size x resources.lora.workers = 24, got 18",
        "set train.micro_batch_size to 1",
    ),
    "report between steps": (
        {"train__report_every": 1.5},
        "train.report_every",
        "must be a whole number of steps or a share below 1, got 1.5",
        "",
    ),
    "offload without its stage": (
        {"deepspeed": {"offload_parameters": True}},
        "deepspeed.offload_parameters",
        "needs zero_stage 3, got 2",
        "",
    ),
    "no objective": (
        {"objectives": []},
        "objectives",
        "must hold at least 1 value, got []",
        "",
    ),
    "objective that nothing logs": (
        {"objectives": [{"metric": "forgetting/maen", "mode": "min"}]},
        "objectives.0.metric",
        "nothing logs forgetting/maen",
        "did you mean forgetting/mean?",
    ),
    "no objectives": (
        {"objectives": ...},
        "objectives",
        "is required and absent",
        "such as [{metric: validation/loss, mode: min}, {metric: forgetting/mean, mode: min}], or "
        "with tasks in eval.in_domain {metric: in_domain/acc_mean, mode: max}",
    ),
    "objectives that are one metric": (
        {"objectives": "validation/loss"},
        "objectives",
        "must be a list, got 'validation/loss'",
        "such as [{metric: validation/loss, mode: min}, {metric: forgetting/mean, mode: min}], or "
        "with tasks in eval.in_domain {metric: in_domain/acc_mean, mode: max}",
    ),
    "objective that needs in-domain tasks": (
        {"eval__in_domain": ..., "objectives": [{"metric": "in_domain/acc_mean", "mode": "max"}]},
        "objectives.0.metric",
        "nothing logs in_domain/acc_mean",
        f"it needs tasks in eval.in_domain; {INSTEAD}",
    ),
    "constraint that needs in-domain tasks": (
        {**WITHOUT_DOMAIN, "constraints": ["in_domain/acc_mean >= 0.8"]},
        "constraints.0",
        "nothing logs in_domain/acc_mean",
        f"it needs tasks in eval.in_domain; {INSTEAD}",
    ),
    "early stopping that needs in-domain tasks": (
        {**WITHOUT_DOMAIN, "early_stopping": {"metrics": {"in_domain/acc_mean": 1}}},
        "early_stopping.metrics",
        "nothing logs in_domain/acc_mean",
        f"it needs tasks in eval.in_domain; {INSTEAD}",
    ),
    "gap to in-domain tasks that there are not": (
        {**WITHOUT_DOMAIN, "eval__ood": ["c"], "constraints": ["ood/gap <= 0.1"]},
        "constraints.0",
        "nothing logs ood/gap",
        "it needs tasks in eval.in_domain",
    ),
    "neither in-domain tasks nor rows held out": (
        {**WITHOUT_DOMAIN, "data__validation_fraction": 0},
        "data.validation_fraction",
        "must be above 0, as eval.in_domain has no tasks, got 0",
        "raise it, or name a data.validation_path",
    ),
    "objective that needs retention tasks": (
        {
            "eval__retention": ...,
            "objectives": [{"metric": "forgetting/mean", "mode": "min"}],
        },
        "objectives.0.metric",
        "nothing logs forgetting/mean",
        "it needs tasks in eval.retention",
    ),
    "objective that needs shifted tasks": (
        {"objectives": [{"metric": "ood/acc_mean", "mode": "max"}]},
        "objectives.0.metric",
        "nothing logs ood/acc_mean",
        "it needs tasks in eval.ood",
    ),
    "objective that needs general text": (
        {"objectives": [{"metric": "forgetting/nll", "mode": "min"}]},
        "objectives.0.metric",
        "nothing logs forgetting/nll",
        "it needs eval.general_text",
    ),
    "constraint on memory that trials share": (
        {"constraints": ["memory/max_reserved_gib <= 40"], "resources": {"lora": {"slots": 4}}},
        "constraints.0",
        "nothing logs memory/max_reserved_gib",
        "it needs resources.lora.slots: 0, as trials in slots share their memory",
    ),
    "bound in points": (
        {"constraints": ["retention/ratio_mean >= 1.5", "forgetting/mean <= 5"]},
        "constraints.1",
        "forgetting/mean is a share, of 1 at most, got forgetting/mean <= 5",
        "write 0.05 for 5 points",
    ),
    "objective twice": (
        {"objectives": [{"metric": "forgetting/mean", "mode": "min"}] * 2},
        "objectives.1.metric",
        "each objective must be another metric, got forgetting/mean again",
        "",
    ),
    "objective in the wrong direction": (
        {"objectives": [{"metric": "in_domain/acc_mean", "mode": "min"}]},
        "objectives.0.mode",
        "in_domain/acc_mean is better the higher it is, got min",
        "write max",
    ),
    "objective of one task in the wrong direction": (
        {"objectives": [{"metric": "forgetting/b", "mode": "max"}]},
        "objectives.0.mode",
        "forgetting/b is better the lower it is, got max",
        "write min",
    ),
    "a task with the name of a metric": (
        {"eval__retention": ["b", {"task": "c", "name": "max"}]},
        "eval.retention.1.name",
        "must not be max, whose forgetting would be logged as another metric, forgetting/max",
        "give the task another",
    ),
    "a weight that would end the trials that forget least": (
        {"early_stopping__metrics": {"in_domain/acc_mean": 2, "forgetting/mean": 0.5}},
        "early_stopping.metrics",
        "forgetting/mean is better the lower it is, got weight 0.5",
        "write -0.5",
    ),
    "a weight that would end the trials that learn most": (
        {"early_stopping__metrics": {"in_domain/acc_mean": -1}},
        "early_stopping.metrics",
        "in_domain/acc_mean is better the higher it is, got weight -1",
        "write 1",
    ),
    "a weight of one task that would end the trials that gain most": (
        {"early_stopping__metrics": {"in_domain/acc_mean": 1, "flips/b/gained": -0.5}},
        "early_stopping.metrics",
        "flips/b/gained is better the higher it is, got weight -0.5",
        "write 0.5",
    ),
    "a weight without weight": (
        {"early_stopping__metrics": {"in_domain/acc_mean": 1, "forgetting/mean": 0}},
        "early_stopping.metrics",
        "must not weigh forgetting/mean by 0, got 0",
        "leave it out",
    ),
    "rungs that no evaluation reaches": (
        {"early_stopping__first_rung": 0.8},
        "early_stopping.first_rung",
        "no evaluation comes between it and the end, got 0.8, and 0.25 for train.report_every",
        "lower one of them",
    ),
    "modules twice in another order": (
        {"search__lora__target_modules": [["q_proj", "v_proj"], ["v_proj", "q_proj"]]},
        "search.lora.target_modules",
        "values must be distinct, got ('q_proj', 'v_proj') more than once",
        "",
    ),
    "objective without a direction": (
        {"objectives": [{"metric": "forgetting/mean"}]},
        "objectives.0.mode",
        "is required and absent",
        "",
    ),
    "constraint with an equals sign": (
        {"constraints": ["forgetting/mean = 0.05"]},
        "constraints.0",
        "must read `metric <= number` (or <, >=, >), got 'forgetting/mean = 0.05'",
        "",
    ),
    "constraint without a number": (
        {"constraints": ["forgetting/mean <= little"]},
        "constraints.0",
        "must read `metric <= number` (or <, >=, >), got 'forgetting/mean <= little'",
        "",
    ),
    "constraint on what nothing logs": (
        {"constraints": ["forgetting/men <= 0.05"]},
        "constraints.0",
        "nothing logs forgetting/men",
        "did you mean forgetting/mean?",
    ),
    "grid over a range": (
        {"sampler": "grid"},
        "search.lora.learning_rate",
        "a grid needs a list of values, got a range",
        "write [1e-4, 3e-4, 1e-3] or choose another sampler",
    ),
    "a genetic search over two methods": (
        {"sampler": "nsga2", "search__full": {"learning_rate": [1e-5, 1e-4]}},
        "sampler",
        "nsga2 searches one method, got lora and full",
        "take tpe, or search one method",
    ),
    "full fine-tuning of 4 bits": (
        {"model__load_in_4bit": True, "search__full": {"learning_rate": [1e-5, 1e-4]}},
        "search.full",
        "must be null, as weights of 4 bits are not trained, got model.load_in_4bit: true",
        "search it in a sweep of its own, without load_in_4bit",
    ),
    "a wait without end": (
        {"budget__minutes_per_report": float("inf")},
        "budget.minutes_per_report",
        "must be a finite number, got inf",
        "",
    ),
    "a weight that is no number": (
        {"early_stopping__metrics": {"in_domain/acc_mean": float("nan")}},
        "early_stopping.metrics.in_domain/acc_mean",
        "must be a finite number, got nan",
        "",
    ),
    "rungs without end": (
        {"early_stopping__reduction_factor": float("inf")},
        "early_stopping.reduction_factor",
        "must be a finite number, got inf",
        "",
    ),
    "a share of a GPU that is no number": (
        {"resources__lora__gpus_per_worker": float("nan")},
        "resources.lora.gpus_per_worker",
        "must be a finite number, got nan",
        "",
    ),
    "a project with its entity": (
        {"wandb__project": "me/forgetting-sweeps"},
        "wandb.project",
        "must hold none of / \\ # ? % :, got me/forgetting-sweeps",
        "of ENTITY/PROJECT, the entity belongs in wandb.entity",
    ),
    "long project": (
        {"wandb__project": "a" * 129},
        "wandb.project",
        "must have 1 to 128 characters, got 129",
        "",
    ),
    "long tag": (
        {"wandb__tags": ["a", "b" * 65]},
        "wandb.tags.1",
        f"must have at most 64 characters, got '{'b' * 59}...",
        "",
    ),
    "one letter less, as a key of another section": (
        {"confirm__seed": 3},
        "confirm.seed",
        "unknown key",
        "did you mean seeds?",
    ),
    "a seed beyond 32 bits": ({"seed": 2**32}, "seed", "must be < 2147483648, got 4294967296", ""),
    "no trials": ({"budget__trials": 0}, "budget.trials", "must be >= 1, got 0", ""),
}


@pytest.mark.parametrize("case", ONE_FAULT)
def test_one_thing_wrong_is_one_fault_with_field_rule_value_and_remedy(
    case: str, tmp_path: Path
) -> None:
    changes, field, rule, remedy = ONE_FAULT[case]
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(**changes), encoding="utf-8")
    fault = only_fault(file)
    assert (fault.field, fault.rule, fault.remedy) == (field, rule, remedy)


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
