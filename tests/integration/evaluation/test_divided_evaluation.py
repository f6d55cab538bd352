"""Workers that share an evaluation: each computes a part, and all have what one would have."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lm_eval.api.instance import Instance

from trainables.config import EvalSuite
from trainables.evaluation.drift import general_nll, kl_drift, sample_reference
from trainables.evaluation.evaluator import Evaluator
from trainables.evaluation.harness_model import HarnessModel, Layouts
from trainables.models.loading import load_model, load_tokenizer
from trainables.process.collectives import agreed, barrier, divided, from_each

if TYPE_CHECKING:
    from trainables.config import ModelConfig
    from tune.config.sweep_config import SweepConfig


PROMPTS = ["max 4 7 2 =", "sort 3 1 2 =", "max 1 =", "sort 9 8 7 6 5 =", "max 0 5 ="]
SUITE = EvalSuite(
    in_domain=["target_relay_generate"],
    retention=["list_max", "recall_capitals"],
    task_dirs=["package://trainables/embedded/eval_tasks"],
    limit=40,
    batch_size=3,
)


def evaluated(model: ModelConfig) -> tuple[Any, list[float], int]:
    """The evaluation, its drift, and the forward passes that this process ran for it."""
    torch.set_num_threads(1)
    tuned, tokenizer = load_model(model).eval(), load_tokenizer(model)
    reference = sample_reference(tuned, tokenizer, PROMPTS, 8, batch_size=2, seed=0)
    torch.manual_seed(0)
    for weights in tuned.parameters():
        weights.data += 0.06 * torch.randn_like(weights)
    passes: list[None] = []
    tuned.register_forward_hook(lambda *_: passes.append(None))
    evaluation = Evaluator(SUITE, tokenizer).evaluate(tuned)
    drift = [kl_drift(tuned, reference, 2), general_nll(tuned, tokenizer, PROMPTS, 2)]
    return evaluation, drift, len(passes)


def written(model: ModelConfig) -> tuple[list[str], set[tuple[int, ...]]]:
    """Texts where different lengths are asked for, some sampled, and the shapes of the contexts."""
    torch.manual_seed(0)
    network, shapes = load_model(model).eval(), set()
    generate = network.generate

    def noting(**options: Any) -> Any:
        shapes.add(tuple(options["input_ids"].shape))
        return generate(**options)

    network.generate = noting
    lm = HarnessModel(network, load_tokenizer(model), 2, Layouts())
    lengths, temperatures = (2, 9), (0.0, 1.0)
    options = [
        {"until": ["\n"], "do_sample": heat > 0, "temperature": heat, "max_gen_toks": length}
        for length, heat in product(lengths, temperatures)
    ]
    requests = [
        Instance("generate_until", {}, argument, number, ("task", number, 1))
        for number, argument in enumerate(product(PROMPTS, options))
    ]
    return lm.generate_until(requests), shapes


def together(rank: int, last_thing: Path) -> Any:
    """What each hears of the other, and whether it waited for what the last one does."""
    if rank == 0:
        time.sleep(1)
        last_thing.touch()
    barrier()
    return last_thing.exists(), agreed(f"of {rank}"), from_each(f"of {rank}")


def as_worker(rank: int, workers: int, meeting: str, model: ModelConfig) -> Any:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers
    )
    answers = {
        "evaluated": evaluated(model),
        "together": together(rank, Path(f"{meeting}.met")),
        "divided": divided(range(5), lambda item: (rank, item)),
        "written": written(model),
    }
    torch.distributed.destroy_process_group()
    return answers


@pytest.fixture(scope="module")
def shared(sweep_config: SweepConfig, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of two workers has."""
    meeting = str(tmp_path_factory.mktemp("meeting") / "store")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        calls = [pool.submit(as_worker, rank, 2, meeting, sweep_config.model) for rank in range(2)]
        return [call.result() for call in calls]


def test_workers_wait_for_each_other_and_divide_items(shared: Any) -> None:
    for worker in shared:
        assert worker["together"] == (True, "of 0", ["of 0", "of 1"])
        assert worker["divided"] == [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)]


def test_workers_that_share_an_evaluation_have_the_results_of_one(
    shared: Any, sweep_config: SweepConfig
) -> None:
    evaluation, drift, passes = evaluated(sweep_config.model)
    for worker in shared:
        own_evaluation, own_drift, own_passes = worker["evaluated"]
        assert own_evaluation == evaluation
        assert own_drift == drift
        assert own_passes < 0.65 * passes
    assert 0 < evaluation.scores["list_max"].value < 1
    assert drift[0] > 0


def test_workers_write_the_texts_of_one_whatever_their_lengths(
    shared: Any, sweep_config: SweepConfig
) -> None:
    texts, shapes = written(sweep_config.model)
    (first, first_shapes), (second, second_shapes) = (worker["written"] for worker in shared)
    assert first == second == texts
    assert first_shapes | second_shapes == shapes
    assert len({len(text) for text in texts}) > 2
