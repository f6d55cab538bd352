"""LoRA trials an hour: as users run them today, as a bare loop, and by this project in slots.

    python tests/benchmarks/packing.py --out packing.json

The same fixed list of trials (same data, steps, evaluation) several ways, in turn, in one run, each
in a process of its own; where there is a GPU other shapes are the default, in bfloat16:

    stock    Ray Tune function trials with TRL, PEFT and lm-evaluation-harness, on Ray's own terms
    loop     the same function called in a loop, everything imported and the base loaded: the floor
             of one at a time
    mixed    this project's sweep of as many trials of the same ranks and learning rates, which
             three recipes share: LoRA, rsLoRA and LoRA+
    slots    this project's sweep, `resources.lora.slots: auto`, with which the others are compared

Times are wall-clock, base evaluation left out; the ratios are of one round each, so that what else
the machine does disturbs all alike. `shares` says where the time went, as shares of the
wall-clock of all lanes: trials, or hosts of slots, that run side by side. Idle, and with it the
start of processes, is what is left. `peak_mib` counts memory that processes share once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import packing_models
import psutil
from packing_models import MADE, ON_A_GPU, SHAPES, Shape, dtype, has_gpu, load, made

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TASKS = ("target_relay", "list_max")
RECIPES = ("lora", "rslora", "loraplus")
RANKS = (4, 8, 16, 32)
RATES = tuple(1e-4 * 1.3**power for power in range(16))


@dataclass(frozen=True)
class Workload:
    """The fixed list of trials on one shape."""

    shape: Shape
    trials: int
    steps: int
    items: int
    data: str

    def points(self) -> list[dict[str, Any]]:
        """Rank and learning rate of each trial."""
        pairs = list(product(RANKS, RATES[: -(-self.trials // len(RANKS))]))
        return [{"rank": rank, "learning_rate": rate} for rank, rate in pairs[: self.trials]]


def main() -> None:
    """Run it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("packing.json"))
    shapes = SHAPES | ON_A_GPU
    usual = list(ON_A_GPU if has_gpu() else SHAPES)
    parser.add_argument("--shapes", nargs="+", choices=shapes, default=usual)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--items", type=int, default=100, help="evaluated at the end, a task")
    parser.add_argument("--rounds", type=int, default=3)
    others = ["stock", "loop", "mixed"]
    parser.add_argument("--beside", nargs="+", choices=others, default=others)
    options = parser.parse_args()
    _quiet()
    figures: dict[str, Any] = {"machine": _machine(), "options": vars(options) | {"out": None}}
    for name in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            shape = shapes[name]
            if shape.model in MADE:
                shape = replace(shape, model=made(MADE[shape.model], Path(folder) / shape.model))
            data = _write_rows(shape, Path(folder) / "rows.jsonl")
            work = Workload(shape, options.trials, options.steps, options.items, data)
            folders = [Path(folder) / str(number) for number in range(options.rounds)]
            rounds = [_round(work, options.beside, each) for each in folders]
        figures[name] = _summary(work, rounds)
        options.out.write_text(json.dumps(figures, indent=2))
        print(json.dumps({name: figures[name]}, indent=2))


def _round(work: Workload, beside: list[str], folder: Path) -> dict[str, Any]:
    """Each way, one after another."""
    ways = {"stock": _stock, "loop": _loop, "mixed": _mixed, "slots": _slots}
    figures = {}
    for name in (*beside, "slots"):
        way = ways[name]
        load = os.getloadavg()[0]
        with PeakMemory() as memory, ProcessPoolExecutor(1, get_context("spawn")) as process:
            of_way = process.submit(way, work, folder / name).result()
        figures[name] = of_way | {"load_before": load, "peak_mib": memory.peak >> 20}
    return figures


def _summary(work: Workload, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    per_hour = {
        way: median(3600 * work.trials / r[way]["seconds"] for r in rounds) for way in rounds[0]
    }
    ratios = {
        f"slots / {other}": median(r[other]["seconds"] / r["slots"]["seconds"] for r in rounds)
        for other in rounds[0]
        if other != "slots"
    }
    return {"trials_per_hour": per_hour, "ratios": ratios, "rounds": rounds}


class PeakMemory:
    """The most memory that this process and those of the cluster ever held, looked at often."""

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        cost = 0.0
        # Looking takes time, and more of it the more processes there are: 1 percent at most.
        while not self._over.wait(max(2.0, 100 * cost)):
            started = time.perf_counter()
            held = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):
                    held += process.memory_full_info().pss
            self.peak = max(self.peak, held)
            cost = time.perf_counter() - started


def train_and_evaluate(model: Any, tokenizer: Any, work: Workload, point: dict[str, Any]) -> Any:
    """One trial as its libraries' documentation shows it; returns scores and seconds."""
    import lm_eval
    import peft
    from datasets import Dataset
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from trl import SFTConfig, SFTTrainer

    clock = Laps()
    rows = [json.loads(line) for line in Path(work.data).read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=work.steps,
                per_device_train_batch_size=work.shape.batch,
                learning_rate=point["learning_rate"],
                use_cpu=not has_gpu(),
                bf16=has_gpu(),
                gradient_checkpointing=False,
                logging_steps=max(1, work.steps // 20),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=peft.LoraConfig(
                r=point["rank"],
                lora_alpha=2 * point["rank"],
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        clock.lap("data_s")
        trainer.train()
        clock.lap("train_s")
        trainer.save_model(f"{folder}/adapter")
        clock.lap("checkpoint_s")
    from trainables.storage.locations import resolve

    tasks = resolve("package://trainables/embedded/eval_tasks")
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=trainer.model.eval(), tokenizer=tokenizer, batch_size=16),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        limit=work.items,
        bootstrap_iters=0,
    )
    trainer.model.unload()
    vars(model).pop("peft_config", None)
    scores = {task: results["results"][task]["acc,none"] for task in TASKS}
    clock.lap("eval_s")
    return scores | clock.seconds


class Laps:
    """Seconds between one call and the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


def _stock(work: Workload, folder: Path) -> dict[str, Any]:
    import ray
    from ray import tune

    _quiet()

    def trial(config: dict[str, Any]) -> None:
        clock = Laps()
        _quiet()
        loaded = load(work.shape.model)
        import peft  # noqa: F401
        import trl  # noqa: F401

        clock.lap("start_s")
        tune.report(train_and_evaluate(*loaded, work, config["point"]) | clock.seconds)

    for module in (sys.modules[__name__], packing_models):
        ray.cloudpickle.register_pickle_by_value(module)
    ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    started = time.perf_counter()
    lanes = 4 if has_gpu() else 2  # of a GPU a quarter each
    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1, "gpu": 1 / lanes if has_gpu() else 0}),
        param_space={"point": tune.grid_search(work.points())},
        run_config=tune.RunConfig(storage_path=str(folder.absolute()), name="stock", verbose=0),
    ).fit()
    seconds = time.perf_counter() - started
    assert len(results) == work.trials
    assert not results.errors
    ray.shutdown()
    return _figures(seconds, lanes=lanes, metrics=[result.metrics for result in results])


def _loop(work: Workload, folder: Path) -> dict[str, Any]:
    import copy

    import lm_eval.models.huggingface  # noqa: F401
    import peft  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    _quiet()
    model, tokenizer = load(work.shape.model)
    clean = copy.deepcopy(model)
    started = time.perf_counter()
    metrics = []
    for point in work.points():
        metrics.append(train_and_evaluate(model, tokenizer, work, point))
        model = copy.deepcopy(clean)  # TRL leaves its own forward pass on a model
    return _figures(time.perf_counter() - started, lanes=1, metrics=metrics)


def _slots(work: Workload, folder: Path) -> dict[str, Any]:
    return _sweep(work, folder, ("lora",))


def _mixed(work: Workload, folder: Path) -> dict[str, Any]:
    return _sweep(work, folder, RECIPES)


def _sweep(work: Workload, folder: Path, recipes: tuple[str, ...]) -> dict[str, Any]:
    from trainables.records.schema import TrialStatus
    from tune.cluster.ray_cluster import ray_cluster
    from tune.config.sweep_file import load_sweep
    from tune.listeners import SweepListener
    from tune.sweep import Sweep

    class Clock(SweepListener):
        started = at = 0.0

        def sweep_started(self, *arguments: Any) -> None:
            self.started, self.at = time.perf_counter(), time.time()

    _quiet()
    rates = sorted({point["learning_rate"] for point in work.points()})
    searched = {recipe: rates[n :: len(recipes)] for n, recipe in enumerate(recipes)}
    spaces = [
        f"{recipe}: {{rank: {list(RANKS)}, alpha_ratio: 2, learning_rate: {own}}}"
        for recipe, own in searched.items()
    ]
    config = load_sweep(
        "quickstart",
        [
            "name=packing",
            f"model={{name: '{work.shape.model}', dtype: {dtype()}}}",
            f"data={{path: {work.data}, validation_fraction: 0}}",
            f"eval={{in_domain: [{TASKS[0]}], retention: [{TASKS[1]}], limit: {work.items}, "
            "task_dirs: [package://trainables/embedded/eval_tasks], kl_prompts: 0}",
            f"search={{{', '.join(spaces)}}}",
            "sampler=grid",
            "objectives=[{metric: in_domain/acc_mean, mode: max}]",
            "constraints=[]",
            "early_stopping=null",
            f"budget.trials={work.trials}",
            f"train={{steps: {work.steps}, batch_size: {work.shape.batch}, "
            f"micro_batch_size: {work.shape.batch}, report_every: {work.steps}}}",
            *(f"resources.{recipe}.slots=auto" for recipe in recipes),
        ],
    )
    clock = Clock()
    with ray_cluster(None):
        outcome = Sweep(config, folder, folder.parent / "base").run([clock])
        seconds = time.perf_counter() - clock.started
    assert [r.status for r in outcome.records] == [TrialStatus.COMPLETE] * work.trials
    lasts = [record.last.metrics for record in outcome.records if record.last]
    metrics = [{"train_s": m["time/train_s"], "eval_s": m["time/eval_s"]} for m in lasts]
    lanes = 1 if has_gpu() else 2
    # Until the first trial's turn: hosts, and the probe.
    metrics.append({"start_s": lanes * (min(r.started for r in outcome.records) - clock.at)})
    return _figures(seconds, lanes=lanes, metrics=metrics)


def _figures(seconds: float, lanes: int, metrics: list[Any]) -> dict[str, Any]:
    """Wall-clock, and what share of it all lanes spent with what."""
    spent = {
        part: sum(m.get(f"{part}_s", 0.0) for m in metrics) / (lanes * seconds)
        for part in ("start", "data", "train", "checkpoint", "eval")
    }
    shares = {part: round(share, 3) for part, share in spent.items() if share}
    # Two lanes that wait for each other's processor each count the time: the sum may exceed 1.
    idle = max(0.0, 1 - sum(spent.values()))
    return {"seconds": seconds, "shares": shares | {"idle": round(idle, 3)}}


def _write_rows(shape: Shape, file: Path) -> str:
    """Rows that are exactly so many tokens long, an eighth of them the completion."""
    _, tokenizer = load(shape.model)
    generator = random.Random(0)
    rows = []
    while len(rows) < 256:
        numbers = [str(generator.randrange(10)) for _ in range(2 * shape.tokens)]
        for prompt_words, words in _lengths(shape.tokens):
            prompt, completion = numbers[:prompt_words], numbers[prompt_words:words]
            row = {"prompt": f"sort {' '.join(prompt)}", "completion": f" {' '.join(completion)}"}
            ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
            if len(ids) + (ids[-1] != tokenizer.eos_token_id) == shape.tokens:
                rows.append(row)
                break
        else:
            raise ValueError(f"no row of {shape.tokens} tokens for {shape.model}")
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def _lengths(tokens: int) -> Iterator[tuple[int, int]]:
    """Words of the prompt, and of all, from many to few."""
    completion = max(1, tokens // 8)
    for words in range(tokens, completion + 1, -1):
        yield words - completion, words


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def _machine() -> dict[str, Any]:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    gpu = torch.cuda.get_device_name() if has_gpu() else None
    return {"name": model, "gpu": gpu, "cpus": os.cpu_count(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
