"""Which modules of a last layer may be computed at labelled positions alone, and that they are."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from in_slots import engine_for
from test_slot_loss import SHAPE, gradients, model, sample, whole
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.models.loading import shared_base
from trainables.packing.last_layer import LastLayer
from trainables.packing.packed_batch import Batch
from trainables.packing.packed_loss import PassLoss
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


USUAL = {"mlp", "self_attn.q_proj", "self_attn.o_proj"}
# Two to five of twelve positions; no two micro-batches, nor their samples, alike.
MICRO_BATCHES = [[(12, 10), (9, 4)], [(12, 11), (5, 3)]]


def found(base: Any) -> set[str]:
    """Their names within the last layer."""
    named = {module: name for name, module in base.get_decoder().layers[-1].named_modules()}
    layer = LastLayer(base)
    layer.close()
    return {named[module] for module in layer.modules}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "qwen3", "olmo2", "phi"])
def test_queries_output_and_mlp_are_found(kind: str) -> None:
    names = {name.replace("self_attn.dense", "self_attn.o_proj") for name in found(model(kind))}
    assert names == USUAL


def test_experts_are_found_with_their_router() -> None:
    assert found(model("mixtral", num_local_experts=4)) == USUAL


def test_zero_weights_hide_no_keys_and_values() -> None:
    """As a model has them that is about to be grown by a layer: none can tell keys by results."""
    base = model("llama")
    base.get_decoder().layers[-1].self_attn.o_proj.weight.data.zero_()
    assert found(base) == USUAL - {"self_attn.q_proj"}  # whose queries have no effect to compare


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
def test_what_chooses_among_keys_is_computed_whole(kind: str) -> None:
    """Of few tokens it takes all, whatever it is made to see."""
    indexer = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 2048}
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    groups = {"n_group": 1, "topk_group": 1, "v_head_dim": 8, "first_k_dense_replace": 1}
    options = SHAPE | {"num_key_value_heads": 2} | indexer | ranks | experts | groups
    config = AutoConfig.for_model(kind, **options)
    names = found(AutoModelForCausalLM.from_config(config).eval())
    assert "self_attn.o_proj" in names
    assert not {name for name in names if "indexer" in name or "kv_" in name}


def test_an_mlp_that_looks_back_is_computed_whole() -> None:
    base = model("llama")
    mlp = base.get_decoder().layers[-1].mlp
    own = mlp.forward
    mlp.forward = lambda x_NSI: own(x_NSI + x_NSI.roll(1, dims=1))
    assert found(base) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


def test_a_weight_of_zero_does_not_hide_that_it_looks_back() -> None:
    """An adapter may change it."""
    base = model("llama")
    mlp = base.get_decoder().layers[-1].mlp
    own = mlp.forward
    mlp.forward = lambda x_NSI: own(x_NSI + 0.0 * x_NSI.roll(1, dims=1))
    assert not {"mlp", "self_attn.o_proj"} & found(base)


def test_layers_that_see_other_positions_than_the_sequence_s_are_computed_whole() -> None:
    base = model("llama")
    mlp = base.get_decoder().layers[-1].mlp
    own = mlp.forward

    def shifted(x_NSI: torch.Tensor) -> Any:
        looks_back_NSI = x_NSI + x_NSI.roll(1, dims=1)
        return own(torch.cat([x_NSI[:, :1], looks_back_NSI], 1))[:, 1:]

    mlp.forward = shifted
    assert found(base) == set()


def test_a_layer_that_is_given_more_by_name_is_computed_whole() -> None:
    base = model("llama")
    mlp = base.get_decoder().layers[-1].mlp
    own, down = mlp.down_proj.forward, mlp.down_proj
    down.forward = lambda x_NSI, scale_NS1: own(x_NSI) * scale_NS1
    mlp.forward = lambda x_NSI: down(
        mlp.up_proj(x_NSI + x_NSI.roll(1, dims=1)), scale_NS1=x_NSI[..., :1]
    )
    assert found(base) == {"mlp.up_proj"}


def test_a_list_within_a_layer_is_no_list_of_layers() -> None:
    base = model("llama")
    base.get_decoder().layers[-1].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    assert found(base) == USUAL


def test_a_model_without_a_list_of_layers_is_computed_whole() -> None:
    base = model("llama")
    base.get_decoder = lambda: torch.nn.Linear(2, 2)
    assert LastLayer(base).modules == []


def test_nothing_is_found_where_positions_mix_after_the_last_layer() -> None:
    base = model("llama")
    norm = base.get_decoder().norm
    own = norm.forward
    norm.forward = lambda x_NSI: own(x_NSI.cumsum(1))
    assert found(base) == set()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere"])
def test_losses_and_gradients_are_the_whole_model_s(kind: str) -> None:
    base = model(kind)
    micro_batches = [[sample(*lengths) for lengths in some] for some in MICRO_BATCHES]
    losses, expected = whole(base, micro_batches)
    counts = [sum(length - prompt for length, prompt in some) for some in MICRO_BATCHES]
    batch = Batch.of(micro_batches, counts, torch.device("cpu"))
    pass_loss = PassLoss(base, nullcontext)
    rows = []
    mlp = base.get_decoder().layers[-1].mlp.down_proj
    mlp.register_forward_hook(lambda _, inputs, output: rows.append(tuple(output.shape[:2])))
    found_K = pass_loss.backward(pass_loss.features(batch), batch)
    assert rows == [(4, 5)]
    assert found_K.tolist() == pytest.approx(losses, rel=1e-5)
    for name, gradient in gradients(base).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prompt", [2, 6])
def test_where_most_positions_are_labelled_all_are_computed(prompt: int) -> None:
    batch = Batch.of([[sample(12, prompt)]], [12 - prompt], torch.device("cpu"))
    assert (batch.window is None) == (prompt == 2)


def test_a_window_lies_within_its_sequence_though_that_has_no_label() -> None:
    rows = [[sample(12, 11)], [sample(6, 6), sample(12, 8)]]
    batch = Batch.of(rows, [1, 4], torch.device("cpu"))
    assert batch.window is not None
    assert (batch.window.indices_W.view(3, -1) // 12).tolist() == [[n] * 4 for n in range(3)]


def test_an_engine_leaves_no_hooks_on_the_base(make_trial: MakeTrial) -> None:
    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in base.modules())

    trial = make_trial()
    base = shared_base(trial.model)
    before = hooks()
    engine = engine_for(trial)
    assert hooks() == before + 2 * len(USUAL)
    engine.close()
    assert hooks() == before


def test_dropout_is_that_of_whole_sequences(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial's random numbers, and so its losses, do not depend on what is computed."""

    def losses(largest_window: float) -> list[float]:
        monkeypatch.setattr("trainables.packing.packed_batch._LARGEST_WINDOW", largest_window)
        trials = [
            make_trial(trial_id="dropped", lora={"dropout": 0.3}),
            make_trial(trial_id="other", lora={"dropout": 0.1}, seed=1),
        ]
        engine = engine_for(trials[0])
        reporters = [ListReporter(), ListReporter()]
        for trial, reporter in zip(trials, reporters, strict=True):
            engine.join(trial, reporter)
        down = engine._base.get_decoder().layers[-1].mlp.down_proj
        hook = down.register_forward_hook(lambda *call: positions.append(call[2].shape[1]))
        while engine.slots:
            engine.step()
        hook.remove()
        engine.close()
        return [m.metrics["train/loss"] for r in reporters for m in r.measurements]

    positions: list[int] = []
    whole_sequences = losses(0.0)
    computed = sum(positions)
    positions.clear()
    assert losses(1.0) == pytest.approx(whole_sequences, abs=1e-6)
    assert sum(positions) < computed
