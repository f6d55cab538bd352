"""The loss of a pass, tile by tile, against the whole model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import tiny_decoder
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.losses.sft import Sft
from trainables.packing import packed_loss
from trainables.packing.packed_batch import Batch
from trainables.packing.packed_loss import PassLoss, ends_with_head

if TYPE_CHECKING:
    from trainables.data.dataset import Sample


VOCABULARY = 60
SHAPE = tiny_decoder.SHAPE | {"vocab_size": VOCABULARY}


def model(kind: str, **options: Any) -> Any:
    set_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **options)).eval()


def sample(length: int, prompt: int) -> Sample:
    ids = torch.randint(1, VOCABULARY, (length,)).tolist()
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def gradients(base: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in base.named_parameters() if p.grad is not None}
    base.zero_grad()
    return found


def loop(base: Any, micro_batches: list[list[Sample]]) -> tuple[list[float], Any]:
    """Losses and gradients by the definition, each sequence by itself."""
    losses = []
    for samples in micro_batches:
        nll, tokens = torch.zeros(()), 0
        for row in samples:
            logits_SV = base(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels_S = torch.tensor(row["labels"][1:], dtype=torch.long)
            nll = nll + cross_entropy(logits_SV, labels_S, ignore_index=-100, reduction="sum")
            tokens += int((labels_S != -100).sum())
        losses.append(nll / max(1, tokens))
    sum(losses).backward()
    return [loss.item() for loss in losses], gradients(base)


@pytest.mark.parametrize(
    ("kind", "options", "has_head_last"),
    [
        ("llama", {"tie_word_embeddings": True}, True),
        ("gemma2", {"final_logit_softcapping": 0.5}, False),
        ("cohere", {"logit_scale": 0.2}, False),
    ],
)
def test_losses_and_gradients_are_those_of_a_loop_over_sequences(
    kind: str,
    options: dict[str, Any],
    has_head_last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_loss, "_TILE_TOKENS", 3)
    base = model(kind, **options)
    assert ends_with_head(base) == has_head_last
    # The last micro-batch teaches nothing.
    micro_batches = [
        [sample(9, 4), sample(5, 1)],
        [sample(7, 2), sample(7, 6)],
        [sample(1, 0), sample(1, 0)],
    ]
    losses, expected = loop(base, micro_batches)
    counts = [sum(t != -100 for s in m for t in s["labels"][1:]) for m in micro_batches]
    batch = Batch.of(micro_batches, [max(1, count) for count in counts], torch.device("cpu"))
    pass_loss = PassLoss(base, nullcontext)
    found_K = pass_loss.backward(pass_loss.features(batch), batch, [Sft()] * 3)
    assert found_K.tolist() == pytest.approx(losses, rel=1e-5)
    assert found_K[2] == 0
    for name, gradient in gradients(base).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_in_bfloat16_the_loss_is_computed_in_float32() -> None:
    """The last hidden state is in float32, as CUDA's autocast leaves layer norms, such as Phi's."""
    base, row = model("llama").to(torch.bfloat16), sample(9, 4)
    ids, norm = torch.tensor(row["input_ids"]), base.get_decoder().norm
    expected = cross_entropy(base(input_ids=ids[None]).logits[0, 3:-1].float(), ids[4:])
    pass_loss = PassLoss(base, lambda: torch.autocast("cpu", torch.bfloat16))
    own = norm.forward
    norm.forward = lambda x_NSI: own(x_NSI).float()
    batch = Batch.of([[row]], [5], torch.device("cpu"))
    (loss,) = pass_loss.backward(pass_loss.features(batch), batch, [Sft()]).tolist()
    assert loss == pytest.approx(expected.item(), abs=1e-4)
