"""Trials in slots of one base measure what each measures alone, whatever their neighbours do."""

from __future__ import annotations

import json
import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from evaluated import evaluated_base
from in_slots import drain, engine_for, measured_in_slots, slots_for
from measured import TOLERANCE, assert_measured
from safetensors.torch import load_file
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.config import LoraConfig
from trainables.data.dataset import TokenizedData
from trainables.errors import Diverged
from trainables.metric_keys import GRAD_NORM, MAX_RESERVED
from trainables.models.loading import load_model, load_tokenizer, shared_base
from trainables.models.lora_adapter import peft_config, restore
from trainables.packing import engine as slot_engine
from trainables.packing.engine import SlotEngine
from trainables.packing.packable import NotBatchable, check_batchable, resolve_targets
from trainables.packing.passes import PassTimes, Share, padded_tokens
from trainables.packing.slot import Slot, initial_values
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.data.dataset import Sample
    from trainables.packing.engine import Ended
    from trainables.packing.packed_batch import Batch
    from trainables.records.schema import Measurement

    MakeTrial = Callable[..., TrialConfig]


TRIALS: dict[str, dict[str, Any]] = {
    "plain": {},
    "same rank, other alpha and rate": {"lora": {"alpha": 16.0}, "learning_rate": 3e-3},
    "rank 64, rsLoRA": {"lora": {"rank": 64, "rslora": True}},
    "rank 1": {"lora": {"rank": 1}},
    "rank 128": {"lora": {"rank": 128}},
    "dropout": {"lora": {"dropout": 0.2}},
    "accumulated": {"train": {"batch_size": 8, "micro_batch_size": 2}},
    "larger batch": {"train": {"batch_size": 16, "micro_batch_size": 8}},
    "schedule, decay": {"train": {"schedule": "cosine", "warmup": 0.3, "weight_decay": 0.1}},
    "constant after a warm-up": {"train": {"schedule": "constant", "warmup": 0.3}},
    "unclipped": {"train": {"max_grad_norm": 0.0}, "learning_rate": 2e-3},
    "another seed": {"seed": 1},
    "longer": {"train": {"steps": 14, "report_every": 7}},
    "plain text": {"data": {"text": "prompt"}},
}


class Killed(Exception):
    pass


class DyingReporter(ListReporter):
    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def report(self, measurement: Measurement) -> None:
        super().report(measurement)
        if measurement.step == self._step:
            raise Killed


def alone(trial: TrialConfig) -> list[Measurement]:
    reporter = ListReporter()
    train_lora(trial, reporter)
    return reporter.measurements


@pytest.fixture(scope="module")
def references(make_trial: MakeTrial) -> dict[str, list[Measurement]]:
    return {name: alone(make_trial(**changes)) for name, changes in TRIALS.items()}


class ByTokens(PassTimes):
    """Of a device on which each token costs the same: samples of any other length go apart."""

    def expected(self, tokens: Any) -> Any:
        return tokens.astype(float)


@pytest.fixture(scope="module", params=[PassTimes, ByTokens])
def packed(make_trial: MakeTrial, request: pytest.FixtureRequest) -> dict[str, list[Measurement]]:
    """All the trials in one engine; each joins two passes after the one before it."""
    reporters = {name: ListReporter() for name in TRIALS}
    trials = {name: make_trial(**changes) for name, changes in TRIALS.items()}
    ended: list[Ended] = []
    with slots_for(trials["plain"]) as engine:
        engine._times = request.param()
        for name, trial in trials.items():
            engine.join(trial, reporters[name])
            if request.param is ByTokens and len(engine.slots) > 1:
                assert len(engine._plan(engine.slots)) > 2
            ended += engine.step() + engine.step()
        ended += drain(engine)
    assert [e.error for e in ended] == [None] * len(TRIALS)
    return {name: reporter.measurements for name, reporter in reporters.items()}


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_in_a_slot_measures_what_it_does_alone(
    name: str, packed: dict[str, Any], references: dict[str, Any]
) -> None:
    assert_measured(packed[name], references[name])
    assert not any(MAX_RESERVED in measured.metrics for measured in packed[name])


def test_recomputed_activations_change_no_number(
    make_trial: MakeTrial, references: dict[str, list[Measurement]]
) -> None:
    """Alone they change none either, as test_lora.py shows."""
    names = ("plain", "dropout", "accumulated", "rank 64, rsLoRA")
    trials = {name: make_trial(**TRIALS[name]) for name in names}
    base = shared_base(trials["plain"].model)
    before = dict(base.get_input_embeddings()._forward_hooks)
    engine = engine_for(trials["plain"], recomputes=True)
    assert base.get_input_embeddings()._forward_hooks == before  # none for unneeded gradients
    reporters = {name: ListReporter() for name in names}
    for name, trial in trials.items():
        engine.join(trial, reporters[name])
    calls: list[int] = []
    layer = base.model.layers[0]
    counting = layer.mlp.up_proj.register_forward_pre_hook(lambda *_: calls.append(1))
    ended = engine.step()
    assert len(calls) == 2  # in the forward pass, and again in the backward one
    counting.remove()
    ended += drain(engine)
    engine.close()
    assert [e.error for e in ended] == [None] * len(names)
    for name, reporter in reporters.items():
        assert_measured(reporter.measurements, references[name])


def test_the_trials_are_different_ones(references: dict[str, Any]) -> None:
    finals = {name: measured[-1].metrics["train/loss"] for name, measured in references.items()}
    del finals["accumulated"]  # the plain one in portions, on some machines to the last bit
    assert len(set(finals.values())) == len(TRIALS) - 1


def test_trials_of_other_data_and_lengths_are_neighbours(
    make_trial: MakeTrial, engine: SlotEngine, tmp_path: Path
) -> None:
    rows = {
        "short": [{"prompt": "max 4 7 2 =", "completion": "7"}],
        "long": [{"prompt": f"sort {' '.join(map(str, range(19, 0, -1)))} =", "completion": "1"}],
        "mixed": [
            {"prompt": "last 1 2 3 =", "completion": "3"},
            {"prompt": f"last {' '.join(map(str, range(20)))} =", "completion": "19"},
        ],
    }
    trials = {}
    for name, some in rows.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in some * 8))
        data = {"path": str(file), "validation_fraction": 0.0, "prompt": "{{ prompt }}"}
        trials[name] = {"data": data, "lora": {"dropout": 0.1}, "learning_rate": 1e-4}
    reporters = {name: ListReporter() for name in trials}
    for name, changes in trials.items():
        engine.join(make_trial(**changes), reporters[name])
    drain(engine)
    for name, changes in trials.items():
        assert_measured(reporters[name].measurements, alone(make_trial(**changes)))


def test_samples_of_one_token_teach_nothing_and_disturb_nobody(
    make_trial: MakeTrial,
    engine: SlotEngine,
    references: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = make_trial(data={"limit": 8, "validation_fraction": 0.0})
    single: Sample = {"input_ids": [5], "labels": [5]}
    tokenized = TokenizedData([single] * 8, [], 0, [])
    inputs = load_tokenizer(trial.model), tokenized
    monkeypatch.setattr(slot_engine, "trial_inputs", lambda _: inputs)
    silent, healthy = ListReporter(), ListReporter()
    slot = engine.join(trial, silent)
    start = {
        name.replace(".default", ""): tensor.detach().cpu().clone()
        for name, tensor in slot.adapter.tensors.items()
    }
    engine.step()
    monkeypatch.undo()
    engine.join(make_trial(), healthy)
    drain(engine)
    assert all(m.metrics["train/loss"] == m.metrics[GRAD_NORM] == 0 for m in silent.measurements)
    saved = load_file(Path(trial.weights_dir) / "adapter_model.safetensors")
    assert saved.keys() == start.keys()
    assert all(torch.equal(saved[name], start[name]) for name in start)
    assert_measured(healthy.measurements, references["plain"])


def test_a_diverging_or_dying_neighbour_is_felt_by_nobody(
    make_trial: MakeTrial, engine: SlotEngine, references: dict[str, Any]
) -> None:
    healthy = ListReporter()
    engine.join(make_trial(), healthy)
    diverging = engine.join(make_trial(learning_rate=1e30), ListReporter())
    dying = engine.join(make_trial(learning_rate=2e-3), DyingReporter(step=4))
    leaving = engine.join(make_trial(lora={"rank": 8}), ListReporter())
    ended = engine.step() + engine.step()
    engine.leave(leaving)
    errors = {e.slot: e.error for e in ended + drain(engine)}
    assert isinstance(errors[diverging], Diverged)
    assert isinstance(errors[dying], Killed)
    assert leaving not in errors
    assert_measured(healthy.measurements, references["plain"])


def test_not_a_bit_of_a_neighbour_leaks(make_trial: MakeTrial, engine: SlotEngine) -> None:
    """Losses and gradients beside a neighbour of NaNs and beside a sound one are the same bits."""
    seen = []
    for poison in (0.0, float("nan")):
        slot = engine.join(make_trial(), ListReporter())
        neighbour = engine.join(make_trial(seed=1), ListReporter())
        neighbour.adapter.flat_P.data += poison
        losses = engine._pass(shares([slot, neighbour]))
        assert (losses[1] != losses[1]) == (poison != poison)
        seen.append((losses[0], slot.adapter.flat_P.grad.clone()))
        engine.leave(slot)
        engine.leave(neighbour)
    assert seen[0][0] == seen[1][0]
    assert torch.equal(seen[0][1], seen[1][1])
    assert seen[0][1].abs().sum() > 0


@pytest.mark.parametrize("rows", [(2, 2, 2, 2), (1, 2, 2, 1)])
def test_whichever_slots_share_a_pass_each_goes_through_its_own_adapter(
    make_trial: MakeTrial, engine: SlotEngine, rows: tuple[int, ...]
) -> None:
    ranks = enumerate((4, 4, 8, 8))
    trials = [make_trial(seed=seed, lora={"rank": rank}) for seed, rank in ranks]
    slots = [engine.join(trial, ListReporter()) for trial in trials]
    for count in range(1, 5):
        for some in combinations(zip(slots, rows, strict=True), count):
            parts = engine._parts_of(some)
            through = [
                (adapter, part.rows)
                for part in parts
                for adapter in part.group.adapters[part.first : part.last]
            ]
            assert through == [(slot.adapter, own) for slot, own in some]


def shares(slots: list[Slot]) -> list[Share]:
    return [Share(slot, slot.micro_batch()) for slot in slots]


def test_gradients_equal_autograd_through_peft(make_trial: MakeTrial, engine: SlotEngine) -> None:
    trials = [make_trial(seed=seed, lora={"rank": rank}) for seed, rank in ((0, 4), (1, 4), (2, 9))]
    slots = [engine.join(trial, ListReporter()) for trial in trials]
    generator = torch.Generator().manual_seed(0)
    for slot in slots:  # B is zero at first, and with it the gradient of A
        flat_P = slot.adapter.flat_P.data
        flat_P += 0.05 * torch.randn(flat_P.shape, generator=generator).to(flat_P.device)
    losses = engine._pass(shares(slots))
    for slot, loss in zip(slots, losses, strict=True):
        model = peft.get_peft_model(load_model(slot.trial.model), peft_config(slot.trial.lora))
        parameters = dict(model.named_parameters())
        for name, tensor in slot.adapter.tensors.items():
            parameters[name].data.copy_(tensor)
        total = torch.zeros(())
        for sample in slot.micro_batch():
            ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor(sample["labels"])
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            kept = labels[1:] != -100
            total = total - log_probs[kept].gather(1, labels[1:][kept][:, None]).sum()
        total = total / slot.labelled_tokens
        total.backward()
        assert loss == pytest.approx(total.item(), abs=1e-5)
        for name, gradient in slot.adapter.views(slot.adapter.flat_P.grad).items():
            assert torch.allclose(gradient.cpu(), parameters[name].grad, atol=1e-5), name


@pytest.mark.parametrize("modules", ["all-linear", ("q_proj", "v_proj")])
def test_a_fresh_adapter_is_peft_s(make_trial: MakeTrial, modules: Any) -> None:
    trial = make_trial(seed=3, lora={"rank": 5, "target_modules": modules})
    with slots_for(trial) as engine:
        values = initial_values(trial, engine._targets)
        slot = engine.join(trial, ListReporter())
    base = shared_base(trial.model)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(base, peft_config(trial.lora))
    expected = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    restore(base, adapted)
    assert list(slot.adapter.tensors) == list(expected)
    assert all(torch.equal(slot.adapter.tensors[name], value) for name, value in expected.items())
    assert torch.equal(values, torch.cat([value.cpu().flatten() for value in expected.values()]))


def test_the_saved_adapter_is_the_one_saved_alone(make_trial: MakeTrial) -> None:
    changes = {"lora": {"rank": 6, "rslora": True, "target_modules": ("q_proj", "up_proj")}}
    slot, reference = make_trial(**changes), make_trial(**changes)
    with slots_for(slot) as engine:
        engine.join(slot, ListReporter())
        (ended,) = drain(engine)
    assert ended.result is not None
    assert ended.result.weights_dir == slot.weights_dir
    alone(reference)
    ours, theirs = (
        json.loads(Path(trial.weights_dir, "adapter_config.json").read_text())
        for trial in (slot, reference)
    )
    for config in (ours, theirs):
        config["target_modules"].sort()
    assert ours == theirs
    ours, theirs = (
        load_file(Path(trial.weights_dir, "adapter_model.safetensors"))
        for trial in (slot, reference)
    )
    assert list(ours) == list(theirs)
    assert all(torch.allclose(ours[name], theirs[name], atol=TOLERANCE) for name in ours)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(slot.weights_dir)
    own = {name.replace(".default", ""): p for name, p in loaded.named_parameters()}
    assert all(torch.equal(own[name], ours[name]) for name in ours)


RESUMED = {
    "lora": {"dropout": 0.2},
    "train": {"steps": 12, "report_every": 5, "schedule": "cosine"},
}


def in_slot(trial: TrialConfig, reporter: ListReporter) -> None:
    with slots_for(trial) as engine:
        engine.join(trial, reporter).restart_step()  # as where memory runs out in its first pass
        changes = {"seed": 5, "earlier_attempts": (), "output_dir": f"{trial.output_dir}_neighbour"}
        engine.join(trial.model_copy(update=changes), ListReporter())
        (error,) = (e.error for e in drain(engine) if e.slot.trial.seed == trial.seed)
    if error:
        raise error


@pytest.mark.parametrize(
    "in_4_bits", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["whole", "4 bits"]
)
@pytest.mark.parametrize(
    ("before", "after"),
    [(in_slot, in_slot), (in_slot, train_lora), (train_lora, in_slot)],
    ids=["slot to slot", "slot to alone", "alone to slot"],
)
def test_a_killed_trial_goes_on_in_a_slot_or_without(
    make_trial: MakeTrial, before: Any, after: Any, in_4_bits: bool
) -> None:
    changes = {**RESUMED, "model": {"load_in_4bit": in_4_bits}}
    undisturbed = {m.step: m for m in alone(make_trial(**changes))}
    first = make_trial(**changes)
    with pytest.raises(Killed):
        before(first, DyingReporter(step=11))
    reporter = ListReporter()
    after(make_trial(**changes, earlier_attempts=(first.output_dir,)), reporter)
    assert reporter.measurements[0].step == 11  # the step after the checkpoint
    assert_measured(reporter.measurements, [undisturbed[m.step] for m in reporter.measurements])


def test_a_trial_that_was_lost_before_its_end_was_recorded_ends_in_a_slot(
    make_trial: MakeTrial,
) -> None:
    first = make_trial(**RESUMED)
    measured = alone(first)
    second, reporter = make_trial(**RESUMED, earlier_attempts=(first.output_dir,)), ListReporter()
    in_slot(second, reporter)
    assert_measured(reporter.measurements, [measured[-1]])
    before, after = (
        load_file(Path(trial.weights_dir) / "adapter_model.safetensors")
        for trial in (first, second)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_slots_beyond_memory_share_smaller_passes(
    make_trial: MakeTrial,
    engine: SlotEngine,
    references: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that holds two slots' activations at a time, and no more."""
    names = ["plain", "dropout", "accumulated", "rank 1", "another seed"]
    reporters = {name: ListReporter() for name in names}
    for name in names:
        engine.join(make_trial(**TRIALS[name]), reporters[name])
    whole_pass, sizes = engine._pass, []

    def limited(shares: list[Share]) -> list[float]:
        sizes.append(sum(len(share.samples) for share in shares))
        if len(sizes) > 3 and sizes[-1] > 16:
            shares[0].slot.adapter.flat_P.grad += 1  # what a backward pass leaves that breaks off
            raise torch.OutOfMemoryError
        return whole_pass(shares)

    monkeypatch.setattr(engine, "_pass", limited)
    monkeypatch.setattr(engine._times, "add", lambda *_: None)  # nothing is cut for speed
    assert [e.error for e in drain(engine)] == [None] * len(names)
    assert sizes[:4] == [4 * 8 + 2] * 4
    assert max(sizes[-3:]) <= 16
    for name in names:
        assert_measured(reporters[name].measurements, references[name])
    assert not engine._short


def test_a_pass_that_fails_for_another_reason_is_not_run_in_parts(
    make_trial: MakeTrial, engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(shares: list[Share]) -> list[float]:
        raise ZeroDivisionError

    for seed in range(2):
        engine.join(make_trial(seed=seed), ListReporter())
    monkeypatch.setattr(engine, "_pass", failing)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert len(engine.slots) == 2


def test_after_a_step_that_was_too_long_for_one_pass_slots_share_passes_again(
    make_trial: MakeTrial,
    engine: SlotEngine,
    references: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["plain", "rank 1", "another seed"]
    reporters = {name: ListReporter() for name in names}
    slots = [engine.join(make_trial(**TRIALS[name]), reporters[name]) for name in names]
    micro_batch, whole_pass, rows = Slot.micro_batch, engine._pass, []
    longest = max(len(ids) for slot in slots for ids in slot._train["input_ids"])

    def longer_at_step_3(slot: Slot) -> list[Sample]:
        more = 2 * longest if slot.state.global_step == 3 else 0
        return [
            {"input_ids": s["input_ids"] + [0] * more, "labels": s["labels"] + [-100] * more}
            for s in micro_batch(slot)
        ]

    def limited(shares: list[Share]) -> list[float]:
        rows.append(sum(len(share.samples) for share in shares))
        if padded_tokens(shares) > 1.5 * whole * longest:
            raise torch.OutOfMemoryError
        return whole_pass(shares)

    whole = 8 * len(slots)
    monkeypatch.setattr(Slot, "micro_batch", longer_at_step_3)
    monkeypatch.setattr(engine, "_pass", limited)
    monkeypatch.setattr(engine._times, "add", lambda *_: None)  # nothing is cut for speed
    assert [e.error for e in drain(engine)] == [None] * len(names)
    assert rows[:4] == [whole] * 4
    assert rows[4] < whole
    assert rows[4] + rows[5] == whole
    assert set(rows[6:]) == {whole}
    for name in names:
        curves = [
            [m.metrics["train/loss"] for m in run]
            for run in (reporters[name].measurements, references[name])
        ]
        assert curves[0] == pytest.approx(curves[1], abs=TOLERANCE)


def test_slots_that_end_together_keep_no_group_s_matrix_alive(
    make_trial: MakeTrial, engine: SlotEngine
) -> None:
    """Each one's tensors are rows of it."""
    slots = [engine.join(make_trial(number=n), ListReporter()) for n in range(4)]
    size = slots[0].adapter.flat_P.numel()
    group = slots[0].adapter.flat_P.untyped_storage()
    assert group.nbytes() == 4 * 4 * size
    ended = drain(engine)
    assert {end.slot for end in ended} == set(slots)
    for slot in slots:
        held = (slot.adapter.flat_P, *slot.adapter.tensors.values())
        assert all(tensor.untyped_storage().nbytes() == 0 for tensor in held)
        assert slot.adapter.flat_P.grad is None


def test_the_base_is_given_back_as_it_was(make_trial: MakeTrial) -> None:
    trial = make_trial()
    base = shared_base(trial.model)

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in base.modules())

    before = hooks()  # hosts of earlier tests have theirs, too, which live as long as their process
    engine = engine_for(trial)
    assert hooks() > before
    engine.join(trial, ListReporter())
    engine.step()
    engine.close()
    fresh = load_model(trial.model).to(base.device)
    assert all(torch.equal(base.state_dict()[k], v) for k, v in fresh.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in base.parameters())
    assert base.training == fresh.training
    assert [(n, type(m)) for n, m in base.named_modules()] == [
        (n, type(m)) for n, m in fresh.named_modules()
    ]
    assert not any("forward" in vars(module) for module in base.modules())
    assert hooks() == before


def test_bfloat16_in_a_slot_is_close_to_bfloat16_alone(
    make_trial: MakeTrial, sweep_config: Any, base_cache: Path
) -> None:
    model = sweep_config.model.model_copy(update={"dtype": "bfloat16"})
    base_dir = evaluated_base(sweep_config, base_cache, model=model)
    changes = {"model": {"dtype": "bfloat16"}, "base_dir": str(base_dir), "lora": {"dropout": 0.1}}
    runs = (*measured_in_slots(make_trial(**changes)), alone(make_trial(**changes)))
    curves = [[m.metrics["train/loss"] for m in run] for run in runs]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda base: setattr(base.model.layers[0].self_attn, "attention_dropout", 0.1), "random"),
        (lambda base: base.model.norm.register_forward_hook(_dropped), "random"),
        (lambda base: setattr(base.model.layers[0].mlp, "up_proj", _Heap(128, 352)), "up_proj"),
        (lambda base: _fuse(base.model.layers[0].mlp), "does not see whole sequences"),
        (
            lambda base: _widen(base.model.layers[2].mlp.up_proj),
            "2.mlp.up_proj is in torch.float64",
        ),
    ],
    ids=[
        "dropout of attention",
        "dropout of a layer",
        "another layer",
        "a layer's weight alone",
        "a layer of another dtype",
    ],
)
def test_a_base_that_cannot_be_shared_says_why(base_model: Any, spoil: Any, word: str) -> None:
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(4)]
    base_model.config.update({"classifier_dropout": 0.1})  # of a head that it does not have
    base_model.classifier = torch.nn.Dropout(0.1)  # which such models may have all the same
    check_batchable(base_model, names, longest=32)  # sound as it is
    spoil(base_model)
    with pytest.raises(NotBatchable, match=word):
        check_batchable(base_model, names, longest=32)


LONG_ROPE = {
    **{"rope_type": "longrope", "original_max_position_embeddings": 16, "factor": 4.0},
    **{"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
}


@pytest.mark.parametrize(
    ("kind", "rope", "sizes"),
    [
        ("phi3", LONG_ROPE, {"max_position_embeddings": 64}),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, {"max_position_embeddings": 16}),
    ],
)
def test_samples_that_would_change_the_positions_of_others_get_no_slots(
    kind: str, rope: dict[str, Any], sizes: dict[str, int]
) -> None:
    sizes = sizes | {"vocab_size": 32, "original_max_position_embeddings": 16}
    parameters = {"rope_theta": 10000.0, **rope}
    config = AutoConfig.for_model(kind, **SHAPE, **sizes, rope_parameters=parameters)
    base = AutoModelForCausalLM.from_config(config).eval()
    names = [name for name, _ in base.named_modules() if name.endswith("down_proj")]
    ids = torch.randint(2, 32, (2, 17))
    one = {"input_ids": ids[:, :8], "position_ids": torch.arange(8)[None]}
    with torch.no_grad():
        alone = base(**one, use_cache=False).logits
        beside = base(input_ids=ids, use_cache=False).logits[:, :8]  # causal
    assert not torch.allclose(alone, beside, atol=1e-6)
    check_batchable(base, names, longest=16)
    with pytest.raises(NotBatchable, match=r"above 16 tokens changes .*; data.max_length is 17"):
        check_batchable(base, names, longest=17)


def test_adapters_that_never_decay_alone_get_no_slots(base_model: Any) -> None:
    """Transformers lets no weight decay whose name is a norm's, such as of DBRX's attention."""
    lora = LoraConfig(rank=4, alpha=8, target_modules=("up_proj", "inner"))
    resolve_targets(base_model, lora.model_copy(update={"target_modules": ("up_proj",)}))
    base_model.model.layers[1].mlp_norm = torch.nn.ModuleDict({"inner": torch.nn.Linear(4, 4)})
    with pytest.raises(NotBatchable, match=r"mlp_norm.*never decays alone, by its name"):
        resolve_targets(base_model, lora)


def test_layers_may_be_given_what_does_not_lie_in_memory_as_in_the_sequence(
    make_trial: MakeTrial, references: dict[str, list[Measurement]]
) -> None:
    """Such as RecurrentGemma's, whose convolution runs along the sequence, and with dropout."""
    trial, dropping = make_trial(), make_trial(**TRIALS["dropout"])
    base = shared_base(trial.model)
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0].mT.contiguous().mT,))
        for layer in base.model.layers
    ]
    measured, dropped = measured_in_slots(trial, dropping)
    dropped_alone = alone(make_trial(**TRIALS["dropout"]))
    for hook in hooks:
        hook.remove()
    assert_measured(measured, references["plain"])
    assert_measured(dropped, dropped_alone)
    with pytest.raises(AssertionError):  # it drops something else than in the usual order
        assert_measured(dropped_alone, references["dropout"])


def test_an_adapted_head_is_left_to_trl_which_refuses_it(base_model: Any) -> None:
    with pytest.raises(NotBatchable, match="lm_head is the output head"):
        check_batchable(base_model, ["model.layers.0.mlp.up_proj", "lm_head"], longest=32)


def _dropped(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(output, 0.001, module.training)


def _fuse(mlp: Any) -> None:
    """As Mamba's kernels do in training."""
    forward, up = mlp.forward, mlp.up_proj
    mlp.forward = lambda x: x * up.weight.mean() if mlp.training else forward(x)


def _widen(layer: torch.nn.Linear) -> None:
    """As Inkling's gates, which are in fp32 in a base of halves."""
    layer.double()
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    layer.register_forward_hook(lambda _, inputs, output: output.float())


class _Heap(torch.nn.Linear):
    pass


def test_a_pass_for_the_memory_that_it_takes_is_of_the_longest_samples(
    make_trial: MakeTrial, engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial()
    (slot, _) = [engine.join(trial, ListReporter()) for _ in range(2)]
    slot._train = slot._train.add_item({"input_ids": [5] * 30, "labels": [5] * 30})
    features, shapes = engine._loss.features, []

    def noted(batch: Batch) -> torch.Tensor:
        shapes.append(tuple(batch.input_ids_NS.shape))
        return features(batch)

    monkeypatch.setattr(engine._loss, "features", noted)
    engine.time_pass(2, None)
    engine.time_pass(2, engine.typical_step(2))
    assert shapes[0] == (2 * trial.train.micro_batch_size, 30)
    assert shapes[1][1] < 30
    engine.clear()


def test_time_in_which_a_neighbour_joins_or_ends_does_not_count(
    engine: SlotEngine, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes half a second, of which the trial that stays is told."""

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*arguments: Any) -> Any:
            time.sleep(0.5)
            return function(*arguments)

        return slowed

    stays = engine.join(make_trial(train={"steps": 8, "report_every": 8}), ListReporter())
    excluded: list[float] = []
    monkeypatch.setattr(stays.measuring, "exclude", excluded.append)
    monkeypatch.setattr(slot_engine, "trial_inputs", slow(slot_engine.trial_inputs))
    short = make_trial(trial_id="short", number=1, train={"steps": 2, "report_every": 2})
    engine.join(short, ListReporter())
    assert sum(excluded) > 0.5
    monkeypatch.setattr(Slot, "finish", slow(Slot.finish))
    while len(engine.slots) == 2:
        excluded.clear()
        engine.step()
    assert sum(excluded) > 0.5
