"""A model whose logits TRL's fused head would compute otherwise is trained on its own."""

from __future__ import annotations

import errno
import json
from contextlib import nullcontext
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, set_seed
from trl.trainer.utils import add_fused_lm_head

from trainables import metric_keys
from trainables.data.dataset import training_order
from trainables.data.tokenized import trial_inputs
from trainables.evaluation.drift import token_nll
from trainables.models import model_shape
from trainables.models.loading import load_model
from trainables.training import trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run

    from trainables.config import TrialConfig


ROUNDING = {"float32": 1e-5, "bfloat16": 2e-3}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PROPHETNET: dict[str, Any] = {"num_decoder_layers": 1, "num_decoder_attention_heads": 2}
PROPHETNET |= {"decoder_ffn_dim": 24, "num_hidden_layers": None}
PROPHETNET |= dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
# Kind, options, whether TRL's head computes what the model does; None where dtypes differ in that.
# Small caps, as the logits of a model with random weights are, of which the largest is 0.9.
MODELS: list[tuple[str, dict[str, Any], bool | None]] = [
    ("llama", {}, True),
    ("gemma2", {"final_logit_softcapping": 0.01}, True),  # TRL knows it
    ("recurrent_gemma", {"logits_soft_cap": 0.01}, False),
    ("recurrent_gemma", {"logits_soft_cap": 0.65}, None),  # a little
    ("modernbert-decoder", {}, False),  # has a layer before its output head
    ("rembert", {"output_embedding_size": 12, "is_decoder": True}, False),  # of another width
    ("prophetnet", PROPHETNET, False),  # has several states of a token before its output head
    ("electra", {"embedding_size": 12, "is_decoder": True, **NO_DROPOUT}, False),
]


@pytest.mark.parametrize(
    ("stage", "dtype"), [(None, "float32"), (None, "bfloat16"), (3, "float32")]
)
@pytest.mark.parametrize(("kind", "options", "is_fused"), MODELS)
def test_the_loss_is_that_of_the_models_own_logits(
    kind: str,
    options: dict[str, Any],
    is_fused: bool | None,
    stage: int | None,
    dtype: str,
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
    tokenizer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_seed(0)
    sizes = SHAPE | options | {"vocab_size": len(tokenizer)}
    shape = {name: size for name, size in sizes.items() if size is not None}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    trial = make_trial(
        "lora" if stage is None else "full",
        model={"name": str(tmp_path), "dtype": dtype, "attention": "eager"},
        train={"steps": 1, "batch_size": 4, "micro_batch_size": 2},
        deepspeed={"zero_stage": stage},
    )
    samples = trial_inputs(trial)[1].train
    first = [samples[row] for row in training_order(len(samples), 4, trial.seed)]
    own_loss = token_nll(load_model(trial.model), first, batch_size=4)
    measured = run(trial).measurements[-1].metrics[metric_keys.TRAIN_LOSS]
    assert measured == pytest.approx(own_loss, abs=ROUNDING[dtype])
    told = [record for record in caplog.records if record.name == trainer.__name__]
    assert is_fused in (None, not told)


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), True),
        (CalledProcessError(1, ["gcc", "cuda_utils.c", "-I/usr/include/python3.11"]), True),
        (PermissionError(errno.EACCES, "Permission denied", "/root/.triton/cache"), True),
        (OSError(errno.ENOSPC, "No space left on device", "/root/.triton/cache"), False),
        (AttributeError("'Head' object has no attribute 'bias'"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), False),
        (RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer"), False),
    ],
)
def test_why_the_fused_head_fails_is_told(
    error: Exception,
    goes_on: bool,
    base_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forward = type(base_model).forward

    def failing(model: Any, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if fused_lm_head:
            raise error
        return forward(model, **inputs)

    monkeypatch.setattr(type(base_model), "forward", failing)
    with nullcontext() if goes_on else pytest.raises(type(error), match=r"memory|gloo|space"):
        assert not trainer._is_of_own_logits(base_model, base_model.device, 1e-4)
    assert (str(error) in caplog.text) == goes_on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", model_shape._FAMILIES)
def test_the_memory_that_is_forecast_is_that_of_the_fused_head(
    family: str, dtype: torch.dtype
) -> None:
    """A micro-batch's logits at once would be more than all else that is forecast."""
    set_seed(0)
    config = AutoConfig.for_model(family, **SHAPE | {"vocab_size": 64})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    add_fused_lm_head(model)
    rounding = trainer._ROUNDING[str(dtype).removeprefix("torch.")]
    assert trainer._is_of_own_logits(model, model.device, rounding)


@pytest.mark.parametrize("takes_count", [True, False])
@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_token_of_a_step_counts_alike_in_whatever_micro_batches(
    method: str,
    is_fused: bool,
    takes_count: bool,
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of models, too, that do not take the count of a step's tokens, such as Gemma 4."""
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", takes_count, raising=False)
    monkeypatch.setattr(trainer, "_is_of_own_logits", lambda *_: is_fused)
    rows = [{"prompt": "", "completion": " 7" * length} for length in (1, 2, 9, 30)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows * 4))
    losses = []
    for size in (4, 2, 1):
        train = {"steps": 1, "batch_size": 4, "micro_batch_size": size}
        trial = make_trial(method, data={"path": str(file)}, train=train)
        losses += run(trial).curve(metric_keys.TRAIN_LOSS)
    samples = trial_inputs(trial)[1].train
    first = [samples[row] for row in training_order(len(samples), 4, trial.seed)]
    own_loss = token_nll(load_model(trial.model), first, batch_size=4)
    assert losses == pytest.approx([own_loss] * 3, abs=ROUNDING["float32"])
