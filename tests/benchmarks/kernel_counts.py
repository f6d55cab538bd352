"""Kernels that a step of a trial asks of a GPU: in slots, and alone as TRL and PEFT train it.

    python tests/benchmarks/kernel_counts.py --out kernel_counts.json

Nothing is timed: a pretended GPU counts what it is asked for. While a model is small, a step takes
about as long as it takes to ask, so this says how much there is to gain on a GPU by slots, before
their one pass for all takes longer than its kernels take to be asked for. The model has the layers
of one of 0.5 B parameters, and is narrower, which changes no number of kernels; it trains in
bfloat16 on one sample a step. Needs what `make pretended_gpu` does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import pretended_gpu  # before torch
import torch
from evaluated import evaluated_base
from packing import _quiet
from packing_models import MADE, load, made

from trainables.config import TrialConfig
from trainables.methods.lora import Lora
from trainables.packing.engine import SlotEngine
from trainables.training.reporter import ListReporter
from tune.config.sweep_file import load_sweep

if TYPE_CHECKING:
    from tune.config.sweep_config import SweepConfig

NARROW = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
RANKS = {"one rank": (8,), "four ranks": (4, 8, 16, 32)}
DROPOUTS = (0.0, 0.05)
FIRST = 3  # steps, until moments are made
STEPS = 5


def main() -> None:
    """Count and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("kernel_counts.json"))
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 32])
    options = parser.parse_args()
    if pretended_gpu.OBSTACLE is not None:
        parser.error(f"no GPU can be pretended here, as {pretended_gpu.OBSTACLE}")
    _quiet()
    figures: dict[str, Any] = {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        model = made(MADE["0.5B"] | NARROW, Path(folder) / "model")
        config = load_sweep(
            "quickstart",
            [
                f"model={{name: '{model}', dtype: bfloat16}}",
                "eval.limit=1",
                "train={steps: 999, batch_size: 1, micro_batch_size: 1, report_every: 999}",
            ],
        )
        base = evaluated_base(config, Path(folder) / "base")
        for dropout in DROPOUTS:
            alone = _alone(model, dropout, Path(folder) / "alone")
            of_slots = {}
            for (name, ranks), count in product(RANKS.items(), options.slots):
                if count < len(ranks):
                    continue
                loras = [
                    Lora(rank=ranks[number % len(ranks)], alpha=16.0, dropout=dropout)
                    for number in range(count)
                ]
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    each = round(_in_slots(config, base, loras, Path(output)) / count)
                times_fewer = round(alone / each, 1)
                of_slots[f"{count} slots, {name}"] = {"each": each, "times fewer": times_fewer}
            figures[f"dropout {dropout}"] = {"alone": alone} | of_slots
    options.out.write_text(f"{json.dumps(figures, indent=2)}\n")
    print(json.dumps(figures, indent=2))


def _alone(model: str, dropout: float, folder: Path) -> int:
    """Kernels of a step as the libraries' documentation shows it."""
    import peft
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    at_steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            at_steps.append(pretended_gpu.launched())

    loaded, tokenizer = load(model)
    SFTTrainer(
        model=loaded,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=FIRST + STEPS,
            per_device_train_batch_size=1,
            bf16=True,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "max 4 7 2 =", "completion": " 7"}] * 16),
        processing_class=tokenizer,
        callbacks=[Count()],
        peft_config=peft.LoraConfig(
            r=8, lora_alpha=16, lora_dropout=dropout, target_modules="all-linear"
        ),
    ).train()
    return (at_steps[-1] - at_steps[FIRST]) // (len(at_steps) - 1 - FIRST)


def _in_slots(config: SweepConfig, base: Path, loras: list[Lora], output: Path) -> int:
    """Kernels of a step of all of them."""
    trials = [
        TrialConfig(
            trial_id=str(number),
            number=number,
            seed=0,  # the same samples, which are always in one pass
            data_seed=0,
            recipe="lora",
            method=lora,
            learning_rate=1e-4,
            model=config.model,
            data=config.data,
            eval=config.eval,
            train=config.train,
            output_dir=str(output / str(number)),
            base_dir=str(base),
        )
        for number, lora in enumerate(loras)
    ]
    engine = SlotEngine(trials[0])
    for trial in trials:
        engine.join(trial, ListReporter())
    for _ in range(FIRST):
        engine.step()
    before = pretended_gpu.launched()
    for _ in range(STEPS):
        engine.step()
    kernels = pretended_gpu.launched() - before
    engine.close()
    return kernels // STEPS


if __name__ == "__main__":
    main()
