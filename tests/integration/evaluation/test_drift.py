"""Drift measures against brute force: one token at a time, unbatched, in float64."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainables.data.rows import read_general_text
from trainables.evaluation.drift import (
    KlReference,
    general_nll,
    kl_drift,
    sample_reference,
    token_nll,
)
from trainables.models.loading import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from tune.config.sweep_config import SweepConfig


# Different lengths, so that batches need padding.
PROMPTS = ["max 4 7 2 =", "relay 3 5 18 0 12 =", "last 1 2 =", "sort 9 4 8 =", "first 5 6 7 ="]
TOKENS = 6


@pytest.fixture(scope="module")
def base_and_tuned(sweep_config: SweepConfig) -> tuple[Any, Any]:
    base, tuned = load_model(sweep_config.model).eval(), load_model(sweep_config.model).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return base, tuned


@pytest.fixture(scope="module")
def reference(base_and_tuned: tuple[Any, Any], tokenizer: Any) -> KlReference:
    return sample_reference(base_and_tuned[0], tokenizer, PROMPTS, TOKENS, batch_size=2, seed=0)


def sequences(reference: KlReference, tokenizer: Any) -> list[tuple[list[int], int]]:
    """Tokens and prompt length of each sequence, read off without the reference's own masks."""
    found = []
    for row, prompt in zip(reference.input_ids_NS.tolist(), PROMPTS, strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        assert row[: len(prompt_ids)] == prompt_ids
        sampled = row[len(prompt_ids) : len(prompt_ids) + TOKENS]
        if tokenizer.eos_token_id in sampled:
            sampled = sampled[: sampled.index(tokenizer.eos_token_id) + 1]
        found.append((prompt_ids + sampled, len(prompt_ids)))
    return found


def distribution(model: Any, prefix: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prefix])).logits[0, -1]
    return torch.softmax(logits.double(), -1)


def test_kl_drift_equals_brute_force(
    base_and_tuned: tuple[Any, Any], reference: KlReference, tokenizer: Any, tmp_path: Path
) -> None:
    base, tuned = base_and_tuned
    total, reverse, count = 0.0, 0.0, 0
    for ids, prompt_length in sequences(reference, tokenizer):
        for position in range(prompt_length, len(ids)):
            p, q = (distribution(model, ids[:position]) for model in (base, tuned))
            total += float((p * (p.log() - q.log())).sum())
            reverse += float((q * (q.log() - p.log())).sum())
            count += 1
    assert count == len(reference.log_probs_TV)
    assert total / count > 0.01
    assert abs(total - reverse) / count > 1e-3  # else its direction would not show
    assert kl_drift(tuned, reference, batch_size=4) == pytest.approx(total / count, abs=1e-5)
    reference.save(tmp_path / "reference.safetensors")
    loaded = KlReference.load(tmp_path / "reference.safetensors")
    assert kl_drift(tuned, loaded, batch_size=4) == kl_drift(tuned, reference, batch_size=4)


def test_drifts_do_not_depend_on_batch_size_and_padding(
    base_and_tuned: tuple[Any, Any], reference: KlReference, tokenizer: Any
) -> None:
    base, tuned = base_and_tuned
    assert kl_drift(base, reference, batch_size=2) == 0
    drifts = [kl_drift(tuned, reference, batch_size) for batch_size in (1, 2, 5)]
    assert drifts == pytest.approx([drifts[0]] * 3, abs=1e-6)
    losses = [general_nll(tuned, tokenizer, PROMPTS, batch_size) for batch_size in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


def test_tokens_are_sampled_from_the_base_s_whole_distribution_by_the_seed(
    base_and_tuned: tuple[Any, Any], tokenizer: Any
) -> None:
    """Whatever its makers advise for writing: the divergence is of its own distribution."""
    unsure = copy.deepcopy(base_and_tuned[1])
    with torch.no_grad():  # almost any token may follow
        unsure.get_output_embeddings().weight *= 0.1
    advice = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.2, "typical_p": 0.5}
    advice |= {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "do_sample": True}
    for name, value in advice.items():
        setattr(unsure.generation_config, name, value)
    advised = copy.deepcopy(unsure.generation_config)
    state = torch.get_rng_state()
    found = sample_reference(unsure, tokenizer, PROMPTS, TOKENS, batch_size=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for row, prompt in zip(found.input_ids_NS.tolist(), PROMPTS, strict=True):
            ids = tokenizer(prompt)["input_ids"]
            for _ in range(TOKENS):
                ids.append(int(torch.multinomial(distribution(unsure, ids).float(), 1)))
                if ids[-1] == tokenizer.eos_token_id:
                    break
            assert row[: len(ids)] == ids
    assert unsure.generation_config == advised


def test_general_nll_equals_the_model_s_own_loss_weighted_by_tokens(
    base_and_tuned: tuple[Any, Any], tokenizer: Any, sweep_config: SweepConfig
) -> None:
    tuned = base_and_tuned[1]
    assert sweep_config.eval.general_text is not None
    documents = [*read_general_text(sweep_config.eval.general_text)[:20], *PROMPTS]
    total, count = 0.0, 0
    for document in documents:
        ids = tokenizer(document, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += float(tuned(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert len({len(tokenizer(document)["input_ids"]) for document in documents}) > 1
    assert general_nll(tuned, tokenizer, documents, batch_size=8) == pytest.approx(
        total / count, abs=1e-5
    )


def test_token_nll_counts_labelled_tokens_alone(base_and_tuned: tuple[Any, Any]) -> None:
    tuned = base_and_tuned[1]
    ids = [1, 20, 30, 40, 50]
    wanted = -math.log(float(distribution(tuned, ids[:3])[ids[3]]))
    labels = [-100, -100, -100, ids[3], -100]
    samples: Any = [{"input_ids": ids, "labels": labels}, {"input_ids": [7], "labels": [7]}]
    assert token_nll(tuned, samples, batch_size=2) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="no token"):
        token_nll(tuned, samples[1:], batch_size=1)
