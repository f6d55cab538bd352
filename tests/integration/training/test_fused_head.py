"""A model whose logits TRL's fused head would compute otherwise is trained on its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, set_seed

from trainables import metric_keys
from trainables.data.dataset import training_order
from trainables.data.tokenized import trial_inputs
from trainables.evaluation.drift import token_nll
from trainables.models.loading import load_model
from trainables.training import trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from small_trials import Run

    from trainables.config import TrialConfig


# Kind, options, whether TRL's head computes what the model does. The cap is small, as the logits of
# a model with random weights are.
MODELS: list[tuple[str, dict[str, Any], bool]] = [
    ("gemma2", {"final_logit_softcapping": 0.01}, True),  # TRL knows this cap
    ("recurrent_gemma", {"logits_soft_cap": 0.01}, False),
    ("rembert", {"output_embedding_size": 12, "is_decoder": True}, False),  # head of another width
]


def nll_before_training(trial: TrialConfig) -> float:
    """The mean over the tokens of the trial's first batch, of 4 rows."""
    samples = trial_inputs(trial)[1].train
    first = [samples[row] for row in training_order(len(samples), 4, trial.seed)]
    return token_nll(load_model(trial.model), first, batch_size=4)


@pytest.mark.parametrize(("kind", "options", "is_fused"), MODELS)
def test_the_loss_is_that_of_the_model_s_own_logits(
    kind: str,
    options: dict[str, Any],
    is_fused: bool,
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
    tokenizer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_seed(0)
    shape = SHAPE | options | {"vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    trial = make_trial(
        "lora",
        model={"name": str(tmp_path), "attention": "eager"},
        train={"steps": 1, "batch_size": 4, "micro_batch_size": 2},
    )
    measured = run(trial).last[metric_keys.TRAIN_LOSS]
    assert measured == pytest.approx(nll_before_training(trial), abs=1e-5)
    assert is_fused != any(record.name == trainer.__name__ for record in caplog.records)


@pytest.mark.parametrize(("method", "is_fused"), [("lora", True), ("full", False)])
def test_every_token_of_a_step_weighs_the_same_in_any_micro_batches(
    method: str,
    is_fused: bool,
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of models that do not take the count of a step's tokens, such as Gemma 4."""
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    monkeypatch.setattr(trainer, "_fused_head_is_exact", lambda *_: is_fused)
    rows = [{"prompt": "", "completion": " 7" * length} for length in (1, 2, 9, 30)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows * 4))
    for size in (4, 1):
        train = {"steps": 1, "batch_size": 4, "micro_batch_size": size}
        trial = make_trial(method, data={"path": str(file)}, train=train)
        loss = run(trial).last[metric_keys.TRAIN_LOSS]
        assert loss == pytest.approx(nll_before_training(trial), abs=1e-5)
