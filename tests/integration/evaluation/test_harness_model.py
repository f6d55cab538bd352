"""Item by item, the model that the harness is given answers as its own HFLM does."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from trainables.evaluation import continuations
from trainables.evaluation.harness_model import HarnessModel, Layouts

SHOTS = "max 3 9 2 = 9\nmax 12 4 = 12\n"
# One token and several, equal beginnings, a trailing space, no context, one text twice, too long.
PAIRS = [
    *[("max 4 7 2 =", f" {number}") for number in (7, 4, 2)],
    *[("sort 16 7 2 13 =", f" {answer}") for answer in ("2 7 13 16", "2 7 16 13", "2 13", "2")],
    *[(f"{SHOTS}max {a} {b} =", f" {c}") for a, b in ((1, 5), (1, 8)) for c in (a, b, "5 1")],
    ("capital of pumiland = ", "lukeville"),
    ("", "max 4 7"),
    ("", "sort"),
    ("max 4 7 2 =", " 7"),
    (" ".join(str(number % 20) for number in range(90)), " 1 2 3"),
    (" ".join(str(number % 20) for number in range(62)), " 1 2"),
]


def instances(kind: str, arguments: list[Any]) -> list[Instance]:
    return [
        Instance(kind, {}, argument, number, ("task", number, 1))
        for number, argument in enumerate(arguments)
    ]


def shaken(model: Any) -> Any:
    """Give it other predictions than those its layouts were made with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def agree(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    likelihoods = [likelihood for likelihood, _ in theirs]
    assert [likelihood for likelihood, _ in ours] == pytest.approx(likelihoods, abs=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_likelihoods_are_hflm_s_of_every_model_that_comes(
    attention: str, base_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model.set_attn_implementation(attention)
    if attention == "eager":  # a few positions at a time, as where memory is short
        monkeypatch.setattr(continuations, "_LOG_PROBS", 3 * len(tokenizer))
    layouts = Layouts()
    for model in (base_model, shaken(base_model)):  # the second finds the requests laid out
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        ours = HarnessModel(model, tokenizer, 4, layouts)
        requests = instances("loglikelihood", PAIRS)
        agree(ours.loglikelihood(requests), theirs.loglikelihood(requests))
        assert len(layouts.batches) == 1
    assert layouts.shares_prefixes
    (batches,) = layouts.batches.values()
    assert sum(batch.input_ids_NS.numel() for batch in batches) < 0.8 * sum(
        len(tokenizer(context + continuation)["input_ids"]) for context, continuation in PAIRS
    )
    texts = instances("loglikelihood_rolling", [(context,) for context, _ in PAIRS if context])
    rolling = theirs.loglikelihood_rolling(texts)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(rolling, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_masks_or_positions_gets_rows_of_their_own(
    ignored: str, dtype: torch.dtype, base_model: Any, tokenizer: Any
) -> None:
    model = base_model.to(dtype)
    forward = model.forward

    def ignorant(*arguments: Any, **options: Any) -> Any:
        return forward(*arguments, **{**options, ignored: None})

    model.forward = ignorant
    layouts = Layouts()
    ours = HarnessModel(model, tokenizer, 4, layouts)
    requests = instances("loglikelihood", PAIRS)
    answers = ours.loglikelihood(requests)
    assert layouts.shares_prefixes is False
    if dtype is torch.float32:  # else they round
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        agree(answers, theirs.loglikelihood(requests))


def test_a_trainer_s_mixed_precision_leaves_no_trace(base_model: Any, tokenizer: Any) -> None:
    """Accelerate puts an autocast into the model that trains, and widens what it returns."""
    model = shaken(base_model).to(torch.bfloat16)
    requests = instances("loglikelihood", PAIRS)
    expected = HarnessModel(model, tokenizer, 4, Layouts()).loglikelihood(requests)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")
    wanted = [answer for answer, _ in theirs.loglikelihood(requests)]
    assert [answer for answer, _ in expected] == pytest.approx(wanted, rel=0.05, abs=5e-3)
    assert HarnessModel(mixed(model), tokenizer, 4, Layouts()).loglikelihood(requests) == expected


def mixed(model: Any) -> Any:
    """As a trainer in mixed precision leaves it, in a process that may have trained otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_each_generated_text_ends_at_its_own_stop(base_model: Any, tokenizer: Any) -> None:
    steps: list[int] = []
    base_model.register_forward_hook(lambda *_: steps.append(1))
    prompts = ["max 4 7 2 =", "sort 16 7 2 13 =", "last 10 2 0 19 =", "max 17 7 5 9 ="]
    options = {"until": ["7", "2", "19", "17"], "do_sample": False, "max_gen_toks": 30}
    requests = instances("generate_until", [(prompt, options) for prompt in prompts])
    theirs = HFLM(pretrained=base_model, tokenizer=tokenizer, batch_size=4)
    wanted, theirs_steps = theirs.generate_until(requests), len(steps)
    steps.clear()
    ours = HarnessModel(base_model, tokenizer, 4, Layouts())
    assert ours.generate_until(requests) == wanted
    assert len(steps) < theirs_steps
    alone = HFLM(pretrained=base_model, tokenizer=tokenizer, batch_size=1)
    assert alone.generate_until(requests) == wanted


def test_a_model_is_released_at_once(base_model: Any, tokenizer: Any) -> None:
    """Not when Python next collects garbage: a slot's memory is needed as soon as it is free."""
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 2}
    gc.disable()
    try:
        lm = HarnessModel(base_model, tokenizer, 4, Layouts())
        lm.loglikelihood(instances("loglikelihood", PAIRS))
        lm.generate_until(instances("generate_until", [("max 4 7 2 =", options)]))
        seen = weakref.ref(lm)
        del lm
        assert seen() is None
    finally:
        gc.enable()
