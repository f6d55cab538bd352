"""Slots on samples of mixed lengths: split into passes, in one pass for all, and one by one.

    python tests/benchmarks/mixed_lengths.py --out mixed_lengths.json

Samples as long as those of GSM8K for SmolLM2's tokenizer (log-normal, 158 tokens in the mean, 467
at most, 58 percent of them the answer), drawn anew for each slot and step. Each step is trained in
three ways in turn, in one process:

    planned    as slots do it: by length, in passes that together take the least time
    together   one pass for all, padded to the longest sample of all slots
    loop       one pass for each trial's micro-batch, padded to the longest there

`tokens` are those computed, padding included, by those that there are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from evaluated import evaluated_base
from packing import _machine, _quiet
from packing_models import MADE, made

from trainables.config import TrialConfig
from trainables.methods.lora import Lora
from trainables.packing.engine import SlotEngine
from trainables.packing.passes import PassTimes, Share, padded_tokens
from trainables.training.reporter import ListReporter
from tune.config.sweep_file import load_sweep

RANKS = (4, 8, 16, 32)
LOG_MEAN, LOG_DEVIATION, LONGEST, SHARE_OF_PROMPT = 5.0, 0.35, 467, 0.42
FIRST = 5  # steps until it is known what passes take


def main() -> None:
    """Run it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("mixed_lengths.json"))
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    _quiet()
    figures: dict[str, Any] = {"machine": _machine(), "options": vars(options) | {"out": None}}
    for batch in options.batches:
        with tempfile.TemporaryDirectory() as folder:
            engine = _engine(Path(folder), options.slots, batch)
            name = f"10M, {options.slots} slots of {batch}"
            figures[name] = _measured(engine, batch, options.steps)
            engine.close()
        options.out.write_text(json.dumps(figures, indent=2))
        print(json.dumps({name: figures[name]}, indent=2))


def _engine(folder: Path, slots: int, batch: int) -> SlotEngine:
    """An engine with so many trials in its slots, of four ranks."""
    model = made(MADE["10M"], folder / "model")
    overrides = [f"model.name={model}", "eval.limit=1", f"train.batch_size={batch}"]
    config = load_sweep("quickstart", [*overrides, f"train.micro_batch_size={batch}"])
    base = evaluated_base(config, folder / "base")
    trials = [
        TrialConfig(
            trial_id=str(number),
            number=number,
            seed=number,
            data_seed=0,
            recipe="lora",
            method=Lora(rank=RANKS[number % len(RANKS)], alpha=16.0),
            learning_rate=1e-4,
            model=config.model,
            data=config.data,
            eval=config.eval,
            train=config.train,
            output_dir=str(folder / str(number)),
            base_dir=str(base),
        )
        for number in range(slots)
    ]
    engine = SlotEngine(trials[0])
    for trial in trials:
        engine.join(trial, ListReporter())
    return engine


def _measured(engine: SlotEngine, batch: int, steps: int) -> dict[str, Any]:
    """Seconds, tokens and passes of all steps but the first, and the ratios of the seconds."""
    rng = random.Random(0)
    ways: dict[str, Callable[[], list[list[Share]]]] = {
        "planned": lambda: engine._plan(engine.slots),
        "together": lambda: [[Share(slot, slot.micro_batch()) for slot in engine.slots]],
        "loop": lambda: [[Share(slot, slot.micro_batch())] for slot in engine.slots],
    }
    seconds, tokens, passes = (dict.fromkeys(ways, 0.0) for _ in range(3))
    times = engine._times
    all_tokens = 0
    for step in range(FIRST + steps):
        for slot in engine.slots:
            samples = [_sample(rng) for _ in range(batch)]
            slot._batch = lambda samples=samples: samples  # type: ignore[method-assign,misc]
            slot._labelled_tokens = None
            all_tokens += sum(len(s["input_ids"]) for s in samples) if step >= FIRST else 0
        for way in rng.sample(list(ways), len(ways)):
            engine._times = times if way == "planned" else PassTimes()
            taken, planned = _time_step(engine, ways[way])
            if step >= FIRST:
                seconds[way] += taken
                tokens[way] += sum(map(padded_tokens, planned))
                passes[way] += len(planned)
    return {
        "ratios": {
            f"planned / {way}": round(seconds[way] / seconds["planned"], 2)
            for way in ("together", "loop")
        },
        "seconds a step": {way: round(taken / steps, 3) for way, taken in seconds.items()},
        "tokens": {way: round(count / all_tokens, 2) for way, count in tokens.items()},
        "passes a step": {way: round(count / steps, 1) for way, count in passes.items()},
    }


def _sample(rng: random.Random) -> dict[str, list[int]]:
    length = min(LONGEST, max(8, round(rng.lognormvariate(LOG_MEAN, LOG_DEVIATION))))
    tokens = [rng.randrange(4, 60) for _ in range(length)]
    prompt = round(SHARE_OF_PROMPT * length)
    return {"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:]}


def _time_step(
    engine: SlotEngine, way: Callable[[], list[list[Share]]]
) -> tuple[float, list[list[Share]]]:
    """Planning and passes; what follows is the same."""
    started = time.perf_counter()
    passes = way()
    for shares in passes:
        engine._pass(shares)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    taken = time.perf_counter() - started
    for slot in engine.slots:
        slot.optimizer.zero_grad()
    return taken, passes


if __name__ == "__main__":
    main()
