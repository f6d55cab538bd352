"""The loss of a pass, tile by tile, against one forward and backward pass of the whole model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import tiny_decoder
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.packing import packed_loss as loss
from trainables.packing.packed_batch import Batch
from trainables.packing.packed_loss import PassLoss, ends_with_head

if TYPE_CHECKING:
    from trainables.data.dataset import Sample


VOCABULARY = 60
SHAPE = tiny_decoder.SHAPE | {"vocab_size": VOCABULARY}
AFTER_THE_HEAD = {
    "gemma2": {"final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.2},
}


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


def whole(base: Any, micro_batches: list[list[Sample]]) -> tuple[list[float], Any]:
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
    return [of_one.item() for of_one in losses], gradients(base)


@pytest.mark.parametrize("tile", [1, 3, 1000])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), *AFTER_THE_HEAD.items()],
)
def test_a_pass_s_losses_and_gradients_are_the_whole_model_s(
    kind: str, options: dict[str, Any], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_TILE_TOKENS", tile)
    base = model(kind, **options)
    assert ends_with_head(base) == (kind not in AFTER_THE_HEAD)
    micro_batches = [
        [sample(9, 4), sample(5, 1)],
        [sample(7, 2), sample(7, 6)],
        [sample(1, 0), sample(1, 0)],
    ]
    losses, expected = whole(base, micro_batches)
    counts = [sum(t != -100 for s in m for t in s["labels"][1:]) for m in micro_batches]
    batch = Batch.of(micro_batches, [max(1, count) for count in counts], torch.device("cpu"))
    pass_loss = PassLoss(base, nullcontext)
    found_K = pass_loss.backward(pass_loss.features(batch), batch)
    assert found_K.tolist() == pytest.approx(losses, rel=1e-5)
    assert found_K[2] == 0
    for name, gradient in gradients(base).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_pass_in_which_nothing_has_a_label_has_no_loss() -> None:
    base = model("llama")
    batch = Batch.of([[sample(1, 0)]], [1], torch.device("cpu"))
    pass_loss = PassLoss(base, nullcontext)
    assert pass_loss.backward(pass_loss.features(batch), batch).tolist() == [0.0]
    assert all(not gradient.any() for gradient in gradients(base).values())


def test_in_bfloat16_the_loss_is_computed_in_float32() -> None:
    """The last hidden state is in float32, as CUDA's autocast leaves layer norms, such as Phi's."""
    base, row = model("llama").to(torch.bfloat16), sample(9, 4)
    ids, norm = torch.tensor(row["input_ids"]), base.get_decoder().norm
    expected = cross_entropy(base(input_ids=ids[None]).logits[0, 3:-1].float(), ids[4:])
    pass_loss = PassLoss(base, lambda: torch.autocast("cpu", torch.bfloat16))
    own = norm.forward
    norm.forward = lambda x_NSI: own(x_NSI).float()
    batch = Batch.of([[row]], [5], torch.device("cpu"))
    (loss,) = pass_loss.backward(pass_loss.features(batch), batch).tolist()
    assert loss == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("lacks", ["head", "backbone", "a head of its width"])
def test_a_base_without_a_head_or_a_backbone_of_its_own_has_logits_alone(lacks: str) -> None:
    base = model("llama")
    if lacks == "head":
        base.get_output_embeddings = lambda: None
    elif lacks == "a head of its width":  # as RemBERT's, between which and it are other layers
        base.get_output_embeddings = lambda: torch.nn.Linear(3, VOCABULARY)
    else:
        base.base_model_prefix = ""
    assert not ends_with_head(base)
