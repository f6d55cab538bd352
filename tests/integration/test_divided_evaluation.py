"""Workers that share an evaluation: each computes a part, and all have what one would have."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainables.config import EvalSuite
from trainables.evaluation.drift import general_nll, kl_drift, sample_reference
from trainables.evaluation.evaluator import Evaluator
from trainables.evaluation.workers import divided
from trainables.inputs.model import load_model, load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from trainables.config import ModelConfig
    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.integration

PROMPTS = ["max 4 7 2 =", "sort 3 1 2 =", "max 1 =", "sort 9 8 7 6 5 =", "max 0 5 ="]
SUITE = EvalSuite(
    in_domain=["target_relay_generate"],
    retention=["list_max", "recall_capitals"],
    task_dirs=["package://trainables/embedded/eval_tasks"],
    limit=40,
    batch_size=3,
)


def evaluated(model: ModelConfig, workers: int) -> tuple[Any, list[float], int]:
    """The evaluation, its drift, and the forward passes that this process ran for it."""
    torch.set_num_threads(1)
    tuned, tokenizer = load_model(model).eval(), load_tokenizer(model)
    reference = sample_reference(tuned, tokenizer, PROMPTS, 8, batch_size=2, seed=0)
    torch.manual_seed(0)
    for weights in tuned.parameters():
        weights.data += 0.06 * torch.randn_like(weights)
    passes: list[None] = []
    tuned.register_forward_hook(lambda *of_it: passes.append(None))
    evaluation = Evaluator(SUITE, tokenizer).evaluate(tuned, workers)
    drift = [
        kl_drift(tuned, reference, 2, workers),
        general_nll(tuned, tokenizer, PROMPTS, 2, workers),
    ]
    return evaluation, drift, len(passes)


def as_worker(rank: int, workers: int, meeting: str, model: ModelConfig) -> Any:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers
    )
    answers = evaluated(model, workers), divided(range(5), lambda item: (rank, item), workers)
    torch.distributed.destroy_process_group()
    return answers


def test_workers_that_share_an_evaluation_have_the_results_of_one(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    model, meeting = sweep_config.model, str(tmp_path / "meeting")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        calls = [pool.submit(as_worker, rank, 2, meeting, model) for rank in range(2)]
        (first, of_first), (second, of_second) = (call.result() for call in calls)
    assert of_first == of_second == [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)]
    evaluation, drift, passes = evaluated(model, 1)
    for shared in (first, second):
        assert shared[0] == evaluation
        assert shared[1] == drift
        assert shared[2] < 0.65 * passes
    assert 0 < evaluation.scores["list_max"].value < 1
    assert drift[0] > 0
