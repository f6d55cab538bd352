"""What fits which GPU: the estimate's closed forms, the table of `--dry-run`, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faults import faults

from trainables.config import ModelShape, TrialConfig
from trainables.decoder_shape import parameters
from trainables.process.memory_estimate import base_estimate, estimate
from trainables.workers.node import gpu_bytes
from tune import cli as command_line
from tune.cluster.memory_fit import cards_by_recipe, check_memory
from tune.config.sweep_file import load_sweep
from tune.search.trial_ids import largest_trial

GIB = 1 << 30
LLAMA = "paper_llama31_8b"
NO_FULL = "search.full=null"


def largest(recipe: str, *overrides: str) -> tuple[ModelShape, TrialConfig]:
    config = load_sweep(LLAMA, list(overrides))
    assert config.model.shape is not None
    return config.model.shape, largest_trial(config, recipe)


@pytest.mark.parametrize(
    ("stage", "workers", "bytes_a_parameter"),
    [(0, 1, 14), (1, 64, 2 + 12 / 64), (2, 64, 2 + 12 / 64), (3, 64, (2 + 12 + 2) / 64)],
)
def test_model_states_are_those_of_the_zero_paper(
    stage: int, workers: int, bytes_a_parameter: float
) -> None:
    """1910.02054, figure 1, of 7.5 B parameters, here 8.03 B."""
    shape, trial = largest(
        "full",
        f"deepspeed.zero_stage={stage}",
        f"resources.full.workers={workers}",
        "train.micro_batch_size=1",
        f"train.batch_size={workers}",
    )
    found = estimate(shape, trial)
    assert found is not None
    static = found.static - (10**9 if stage == 3 else 0)
    assert static / parameters(shape) == pytest.approx(bytes_a_parameter, rel=1e-9)


def test_adapters_have_the_parameters_that_peft_counts() -> None:
    """r = 16 on every linear layer of Llama-3.1-8B: 41,943,040, as PEFT prints."""
    shape, trial = largest("lora", "search.lora.rank=16")
    assert trial.method.parameters(shape) == 41_943_040


def test_a_base_of_4_bits_takes_what_its_paper_says() -> None:
    """QLoRA (2305.14314), section 3: 4 bits and 0.127 a parameter for the constants."""
    shape, trial = largest("lora", NO_FULL, "model.load_in_4bit=true")
    untouched = 2 * shape.vocabulary * shape.hidden + (2 * shape.layers + 1) * shape.hidden
    expected = 2 * untouched + (parameters(shape) - untouched) * (4 + 0.127) / 8
    assert base_estimate(shape, trial).static == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("gib", "overrides", "facts"),
    [
        (80, [], {}),
        # Both share 10 GiB with three others.
        (40, [NO_FULL, "resources.lora.gpus_per_worker=0.25"], {"search.lora": "has 10.0 GiB"}),
        (
            12,
            [],
            {
                "search.lora": "lower search.lora.rank",
                "search.full": "deepspeed.zero_stage",
                "the base's evaluation": "it has 12.0 GiB",
            },
        ),
        (1, ["model.shape=null"], {}),  # what is not known is not judged
    ],
)
def test_what_cannot_fit_is_refused_for_every_recipe_at_once(
    gib: float, overrides: list[str], facts: dict[str, str]
) -> None:
    config = load_sweep(LLAMA, overrides)
    cards = cards_by_recipe(config, lambda _: int(gib * GIB))
    if not facts:
        check_memory(config, cards, has_base=False)
        return
    found = {fault.field: str(fault) for fault in faults(check_memory, config, cards, False)}
    assert found.keys() == facts.keys()
    assert all(fact in found[field] for field, fact in facts.items())


def test_a_dry_run_shows_which_card_takes_what_and_the_disk(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_line.main([LLAMA, "--dry-run", "--set", "eval.batch_size=64"]) == 0
    shown = capsys.readouterr().out
    table = shown.split("memory of a worker")[1].splitlines()
    rows = [line for line in table if re.match("(lora|full|base), ", line)]
    assert [row.split(",")[0] for row in rows] == ["lora", "full", "base"]
    assert max(map(len, rows)) <= 80
    # 8.03e9 parameters of 2 bytes, 3.4e8 of 12, and 64 x 512 tokens with keys and values.
    assert re.search("28.6 +smaller( +fits){4}$", rows[0])
    # 8.03e9 parameters: 12 bytes in each of 3 checkpoints, 2 in the weights.
    assert "full: a trial takes up to 284 GiB of disk while it trains" in shown


def test_the_driver_of_the_graphics_card_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_bytes(2) is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 24564\n")
    program.chmod(0o755)
    assert gpu_bytes(2) == 24564 << 20
    assert gpu_bytes(1) == 81559 << 20  # Ray was started with CUDA_VISIBLE_DEVICES, and has one
    assert gpu_bytes(0) is None
