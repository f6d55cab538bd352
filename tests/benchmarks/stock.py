"""The quickstart sweep as it is written with stock libraries: `python tests/benchmarks/stock.py`.

Ray Tune, Optuna's search, TRL, PEFT and lm-evaluation-harness, each as its documentation shows it:
same model, data, tasks, space, objectives and training as the bundled sweep. The base is evaluated
once, before the trials; each trial has a core to itself; OptunaSearch has all three objectives, so
each report measures all of them; ASHA stops trials by their accuracy in the domain.

Writes what trials took for `time_to_answer.py`, which runs it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPORTS = (60, 120)  # steps
ROLES = ("in_domain", "retention", "ood")
OBJECTIVES = {"in_domain": "max", "forgetting": "min", "ood": "max"}


def bundled_sweep() -> dict[str, Any]:
    """What the user would have in a file of their own."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from trainables.storage.locations import resolve
    from tune.config.sweep_file import load_sweep

    config = load_sweep("quickstart", [])
    spaces = {recipe: dict(config.search.choices(recipe)) for recipe in ("lora", "full")}
    rates = {recipe: space["learning_rate"] for recipe, space in spaces.items()}
    return {
        "model": str(resolve(config.model.name)),
        "data": str(resolve(config.data.path)),
        "task_dirs": [str(resolve(folder)) for folder in config.eval.task_dirs],
        "tasks": {role: [t.label for t in getattr(config.eval, role)] for role in ROLES},
        "eval_batch_size": config.eval.batch_size,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "warmup": config.train.warmup,
        "ranks": list(spaces["lora"]["rank"]),
        "alpha_ratios": list(spaces["lora"]["alpha_ratio"]),
        "rates": {recipe: (rate.low, rate.high) for recipe, rate in rates.items()},
        "trials": config.budget.trials,
        "seed": config.seed,
    }


def space(sweep: dict[str, Any], trial: Any) -> None:
    """The search space, define-by-run."""
    method = trial.suggest_categorical("method", ["lora", "full"])
    if method == "lora":
        trial.suggest_categorical("rank", sweep["ranks"])
        trial.suggest_categorical("alpha_ratio", sweep["alpha_ratios"])
    low, high = sweep["rates"][method]
    trial.suggest_float(f"{method}_rate", low, high, log=True)


def accuracies(sweep: dict[str, Any], model: Any, tokenizer: Any) -> dict[str, float]:
    """Mean accuracy of each role's tasks."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=sweep["eval_batch_size"]),
        tasks=[task for tasks in sweep["tasks"].values() for task in tasks],
        task_manager=TaskManager(include_path=sweep["task_dirs"], include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    found = {
        task: scores.get("acc,none", scores.get("exact_match,none"))
        for task, scores in results.items()
    }
    return {
        role: sum(found[t] for t in tasks) / len(tasks) for role, tasks in sweep["tasks"].items()
    }


def load(sweep: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    model = AutoModelForCausalLM.from_pretrained(sweep["model"], dtype="float32")
    return model, AutoTokenizer.from_pretrained(sweep["model"])


def train(config: dict[str, Any], sweep: dict[str, Any], base: dict[str, float]) -> None:
    """One trial, in a process of Ray's."""
    from datasets import Dataset
    from peft import LoraConfig
    from ray import tune
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load(sweep)
    seconds = {"train_s": 0.0, "eval_s": 0.0}

    class Report(TrainerCallback):  # type: ignore[misc]
        """Evaluates and reports at the steps of `REPORTS`."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._since = time.perf_counter()

        def on_step_end(self, _: Any, state: Any, *__: Any, model: Any, **___: Any) -> None:
            if state.global_step not in REPORTS:
                return
            seconds["train_s"] += time.perf_counter() - self._since
            began = time.perf_counter()
            roles = accuracies(sweep, model.eval(), tokenizer)
            model.train()
            self._since = time.perf_counter()
            seconds["eval_s"] += self._since - began
            forgetting = base["retention"] - roles["retention"]
            metrics = {**roles, "forgetting": forgetting, "step": state.global_step}
            tune.report(metrics | seconds)

    is_lora = config["method"] == "lora"
    rank = config.get("rank", 0)
    adapter = LoraConfig(
        r=rank,
        lora_alpha=config.get("alpha_ratio", 0) * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    rows = [json.loads(line) for line in Path(sweep["data"]).read_text().splitlines()]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir="out",
            max_steps=sweep["steps"],
            per_device_train_batch_size=sweep["batch_size"],
            learning_rate=config[f"{config['method']}_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=round(sweep["warmup"] * sweep["steps"]),
            seed=sweep["seed"],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=sweep["steps"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter if is_lora else None,
        callbacks=[Report()],
    )
    trainer.train()
    trainer.save_model("out")


def evaluate_base(sweep: dict[str, Any]) -> dict[str, float]:
    return accuracies(sweep, *load(sweep))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("stock.json"))
    parser.add_argument("--trials", type=int, help="default: the sweep's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    sweep = bundled_sweep() | {"seed": options.seed}
    ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    base = ray.get(ray.remote(num_cpus=1)(evaluate_base).remote(sweep))
    began, metrics = time.time(), list(OBJECTIVES)
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, sweep=sweep, base=base), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                num_samples=options.trials or sweep["trials"],
                search_alg=OptunaSearch(
                    partial(space, sweep),
                    metric=metrics,
                    mode=[OBJECTIVES[metric] for metric in metrics],
                    seed=options.seed,
                ),
                scheduler=ASHAScheduler(
                    time_attr="step",
                    metric="in_domain",
                    mode="max",
                    max_t=sweep["steps"],
                    grace_period=REPORTS[0],
                    reduction_factor=3,
                ),
            ),
            run_config=tune.RunConfig(storage_path=folder, name="stock", verbose=0),
        ).fit()
    ended = time.time()
    assert not results.errors, results.errors
    trials = [result.metrics for result in results]
    options.out.write_text(json.dumps({"began": began, "ended": ended, "trials": trials}))


if __name__ == "__main__":
    main()
