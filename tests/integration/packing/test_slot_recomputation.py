"""Passes that recompute each layer's activations: what they hold, and that they drop the same."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from in_slots import measured_in_slots, slots_for
from measured import assert_measured
from test_memory import Tracker
from test_slot_loss import SHAPE, model
from test_slots import alone
from transformers import AutoConfig, LlamaForCausalLM

from trainables.config import BaseRequirements, LoraConfig
from trainables.errors import UserError
from trainables.models.adaptable import check_adaptable
from trainables.models.loading import shared_base
from trainables.packing.adapters import AdaptedLayers, lay_out
from trainables.packing.packable import NotBatchable
from trainables.packing.packed_loss import PassLoss
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainables.config import TrialConfig
    from trainables.packing.packed_batch import Batch

    MakeTrial = Callable[..., TrialConfig]


SLOTS = 4
# Of unlike lengths, and in several passes a step, as generators go on from one to the next.
ACCUMULATED = {"batch_size": 8, "micro_batch_size": 2}
TRIALS: list[dict[str, Any]] = [
    {"lora": {"dropout": 0.2}, "train": ACCUMULATED},
    {"lora": {"dropout": 0.5}, "train": ACCUMULATED, "seed": 1},
    {"lora": {"rank": 8}, "train": ACCUMULATED, "seed": 2},
]


@pytest.fixture
def base(make_trial: MakeTrial) -> Iterator[Any]:
    """The base that trials share, to be changed at will."""
    shared_base.cache_clear()
    yield shared_base(make_trial().model)
    shared_base.cache_clear()


def _twice(mlp: Any) -> None:
    own = mlp.forward
    mlp.forward = lambda x_NSI: own(own(x_NSI))


def call_twice_in_a_block(base: Any) -> None:
    for layer in base.model.layers:
        _twice(layer.mlp)


def call_twice_in_each_of_two_blocks(base: Any) -> None:
    base.model.layers[2].mlp = base.model.layers[0].mlp
    _twice(base.model.layers[0].mlp)


@pytest.mark.parametrize("change", [call_twice_in_a_block, call_twice_in_each_of_two_blocks])
def test_a_layer_called_twice_drops_the_same_again(
    change: Callable[[Any], None], base: Any, make_trial: MakeTrial
) -> None:
    change(base)
    kept, recomputed = (after_two_passes(make_trial, recomputes) for recomputes in (False, True))
    for (gradient, state), (expected, its_state) in zip(recomputed, kept, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(state, its_state)


def after_two_passes(
    make_trial: MakeTrial, recomputes: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each trial's gradient, not yet of a whole step, and the state of its generator."""
    trials = [make_trial(**changes) for changes in TRIALS]
    with slots_for(trials[0], recomputes) as engine:
        slots = [engine.join(trial, ListReporter()) for trial in trials]
        generator = torch.Generator().manual_seed(0)
        for slot in slots:  # B is zero at first, and with it the gradient of A
            flat_P = slot.adapter.flat_P.data
            flat_P += 0.05 * torch.randn(flat_P.shape, generator=generator).to(flat_P.device)
        engine.step()
        engine.step()
        return [(slot.adapter.flat_P.grad.clone(), slot.generator.get_state()) for slot in slots]


def test_trials_measure_what_they_do_alone(base: Any, make_trial: MakeTrial) -> None:
    call_twice_in_each_of_two_blocks(base)
    trials = [make_trial(**changes) for changes in TRIALS]
    for changes, measured in zip(TRIALS, measured_in_slots(*trials, recomputes=True), strict=True):
        assert_measured(measured, alone(make_trial(**changes)))


class Booleans(Tracker):
    """Bytes of masks."""

    def add(self, tensor: torch.Tensor) -> None:
        if tensor.dtype is torch.bool:
            super().add(tensor)


def seen_in_a_pass(
    trial: TrialConfig, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, Batch]:
    """Bytes that a forward pass leaves for the backward pass, and its batch."""
    with slots_for(trial, recomputes=True) as engine:
        for seed in range(SLOTS):
            engine.join(trial.model_copy(update={"seed": seed}), ListReporter())
        engine.step()  # makes gradients and moments
        features, seen = engine._loss.features, []

        def noted(batch: Batch) -> torch.Tensor:
            before = tracker.live
            features_TF = features(batch)
            seen.append((tracker.live - before, batch))
            return features_TF

        monkeypatch.setattr(engine._loss, "features", noted)
        with tracker:
            engine.step()
    return seen[0]


def test_a_pass_holds_the_masks_of_one_block(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(lora={"dropout": 0.1}, train={"steps": 99, "report_every": 99})
    config = shared_base(trial.model).config
    tracker = Booleans()
    between, batch = seen_in_a_pass(trial, tracker, monkeypatch)
    # Query, key, value, gate and up projection see hidden states; so wide is the output's, too.
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    widest = config.intermediate_size * (2 if torch.cuda.is_available() else 1)  # as it is drawn
    of_a_block = batch.input_ids_NS.numel() * (6 * config.hidden_size + widest)
    assert config.num_hidden_layers == 4
    assert between == 0
    assert tracker.peak == pytest.approx(of_a_block, rel=0.1)


def test_a_forward_pass_leaves_no_tensor_of_adapters(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {"steps": 99, "report_every": 99}
    left = []
    for rank, dropout in ((1, 0.0), (64, 0.1)):
        trial = make_trial(lora={"rank": rank, "dropout": dropout}, train=lengths)
        left.append(seen_in_a_pass(trial, Tracker(), monkeypatch)[0])
    assert left[0] == left[1] > 0


def hooks(base: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in base.modules())


def contexts(base: Any) -> Any:
    layers = lay_out([(n, m) for n, m in base.named_modules() if type(m) is torch.nn.Linear])
    return AdaptedLayers(layers).contexts


def test_a_model_that_cannot_recompute_is_told_of_and_left_as_it_was() -> None:
    base = model("gpt_neox_japanese")
    loss = PassLoss(base, nullcontext)
    assert hooks(base) > 0
    loss.close()
    assert hooks(base) == 0
    told = (
        r"^train\.gradient_checkpointing: must be false, as GPTNeoXJapaneseForCausalLM does not "
        r"support activation checkpointing, got true; leave it out"
    )
    with pytest.raises(UserError, match=told):
        PassLoss(base, nullcontext, contexts(base))
    assert hooks(base) == 0


def test_whether_a_model_can_recompute_is_told_with_what_adapters_it_takes() -> None:
    base = model("gpt_neox_japanese")
    adapters = (LoraConfig(rank=1, alpha=1, target_modules=("nothing_like_this",)),)
    check_adaptable(base, BaseRequirements())
    with pytest.raises(UserError) as caught:
        check_adaptable(base, BaseRequirements(adapters=adapters, recomputes=True))
    asked = ("search.lora.target_modules", "train.gradient_checkpointing")
    assert tuple(fault.field for fault in caught.value.faults) == asked
    able = model("llama")
    check_adaptable(able, BaseRequirements(recomputes=True))
    assert not able.is_gradient_checkpointing
    assert hooks(base) == hooks(able) == 0


class OlderLlama(LlamaForCausalLM):
    """As code for Transformers before 4.35 says how it recomputes."""

    def _set_gradient_checkpointing(self, module: Any, value: bool = False) -> None:
        module.gradient_checkpointing = value


def test_a_model_that_recomputes_in_a_way_of_its_own_is_not_shared() -> None:
    base = OlderLlama(AutoConfig.for_model("llama", **SHAPE)).eval()
    with pytest.raises(NotBatchable, match="in a way of its own"):
        PassLoss(base, nullcontext, contexts(base))
    assert hooks(base) == 0
    assert not any(getattr(m, "gradient_checkpointing", False) for m in base.modules())
