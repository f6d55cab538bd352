"""What every method must do, on the embedded model: a new method is tested by being there."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from evaluated import evaluated_base
from safetensors.torch import load_file

from trainables.config import ModelConfig
from trainables.errors import CannotInspect
from trainables.inspection.updates import updates
from trainables.methods import METHODS
from trainables.metric_keys import TRAIN_LOSS
from trainables.models.adapter import Adapted
from trainables.models.loading import load_model
from trainables.models.model_shape import read_shape
from trainables.training.adapter_sft import train_adapter
from trainables.training.reporter import ListReporter, StopTrial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainables.config import TrialConfig
    from trainables.methods import Method
    from tune.config.sweep_config import SweepConfig

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
ADAPTERS = [each for each in METHODS if not each.changes_base]
STEPS, LEARNING_RATE = 4, 1e-2
IDS_BS = torch.randint(3, 309, (2, 16), generator=torch.Generator().manual_seed(0))
SAMPLES = [{"input_ids": ids, "labels": ids} for ids in IDS_BS.tolist()]


@dataclass
class Trained:
    """What a method did to the base, step by step."""

    method: Method
    folder: Path
    at_start: torch.Tensor
    without: torch.Tensor
    flags_are_restored: bool
    trained_numbers: int
    frozen_numbers: int
    start: dict[str, torch.Tensor]
    at_end: torch.Tensor
    without_at_end: torch.Tensor
    says_restored: bool
    base_after: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def fresh() -> Any:
    """The base, which no test changes."""
    return load_model(MODEL).eval()


@pytest.fixture(scope="module")
def base() -> Any:
    """The base that all methods share, one after the other."""
    return load_model(MODEL).eval()


@pytest.fixture(scope="module", params=ADAPTERS, ids=lambda method: method.name)
def trained(request: Any, base: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A method put on the shared base, trained, saved and removed."""
    torch.manual_seed(0)
    method = request.param.example()
    in_base = {id(tensor) for tensor in [*base.parameters(), *base.buffers()]}
    adapted = Adapted(base, method, STEPS, SAMPLES)
    adapted.model.eval()
    at_start = logits(adapted.model)
    flags = requires_grad(adapted.model)
    with adapted.without() as alone:
        without = logits(alone)
    flags_are_restored = requires_grad(adapted.model) == flags
    added = {id(t): t for t in tensors_of(adapted.model) if id(t) not in in_base}.values()
    trained_numbers = sum(
        method.trained_numbers(name, p.numel())
        for name, p in adapted.model.named_parameters()
        if p.requires_grad
    )
    start = {n: p.detach().clone() for n, p in adapted.model.named_parameters() if p.requires_grad}
    train(adapted.model, method)
    folder = tmp_path_factory.mktemp(method.name)
    adapted.model.save_pretrained(folder, save_embedding_layers=False)
    at_end = logits(adapted.model)
    with adapted.without() as alone:
        without_at_end = logits(alone)
    return Trained(
        method=method,
        folder=folder,
        at_start=at_start,
        without=without,
        flags_are_restored=flags_are_restored,
        trained_numbers=trained_numbers,
        frozen_numbers=sum(t.numel() for t in added) - trained_numbers,
        start=start,
        at_end=at_end,
        without_at_end=without_at_end,
        says_restored=adapted.remove(),
        base_after={name: t.clone() for name, t in base.state_dict().items()},
    )


def tensors_of(model: Any) -> Iterator[torch.Tensor]:
    """Parameters, buffers and what modules keep by an adapter's name."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        named = (value for value in vars(module).values() if isinstance(value, dict))
        for tensors in named:
            if isinstance(tensor := tensors.get("default"), torch.Tensor):
                yield tensor


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS_BS).logits


def requires_grad(model: Any) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def train(model: Any, method: Method) -> None:
    """A few steps of AdamW on random tokens, with all that a method adds to a step."""
    model.train()
    groups = [
        {"params": [p], "lr": LEARNING_RATE * method.rate(name)}
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(1, STEPS + 1):
        next_BST = model(input_ids=IDS_BS).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(next_BST.flatten(0, 1), IDS_BS[:, 1:].flatten())
        penalty = method.penalty(model)
        (loss if penalty is None else loss + penalty).backward()
        method.before_step(model)
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    model.eval()


def test_it_starts_at_the_base_or_says_so(trained: Trained, fresh: Any) -> None:
    difference = (trained.at_start - logits(fresh)).abs().max()
    # Reflections and singular vectors that cancel at the start leave the rounding of fp32.
    assert (difference <= 1e-4) == trained.method.starts_at_base


def test_training_changes_what_the_model_computes(trained: Trained) -> None:
    assert (trained.at_end - trained.at_start).abs().max() > 1e-2


def test_without_it_the_model_is_the_base(trained: Trained, fresh: Any) -> None:
    expected = logits(fresh)
    torch.testing.assert_close(trained.without, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(trained.without_at_end, expected, atol=1e-6, rtol=0)
    assert trained.flags_are_restored


def test_removed_it_leaves_every_weight_of_the_base(trained: Trained, fresh: Any) -> None:
    expected = fresh.state_dict()
    assert list(trained.base_after) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in trained.base_after.items())
    assert trained.says_restored


def test_plain_peft_reloads_and_merges_it(trained: Trained, fresh: Any) -> None:
    model = peft.PeftModel.from_pretrained(copy.deepcopy(fresh), trained.folder).eval()
    torch.testing.assert_close(logits(model), trained.at_end, atol=1e-5, rtol=0)
    if trained.method.merges:
        expected = logits(in_double(model))  # in fp32 rounding alone is 5e-5
        merged = model.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)


def test_its_strength_goes_from_the_base_to_what_it_learned(trained: Trained, fresh: Any) -> None:
    if trained.method.why_not_scaled:
        pytest.skip(trained.method.why_not_scaled)
    whole, half, nothing = (at_strength(trained, fresh, strength) for strength in (1, 0.5, 0))
    torch.testing.assert_close(logits(whole), trained.at_end, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(nothing), logits(fresh), atol=1e-4, rtol=0)
    if not trained.method.merges:
        distance = (logits(half) - logits(fresh)).norm() / (trained.at_end - logits(fresh)).norm()
        assert 0.2 < distance < 0.8
        return
    of_base = fresh.state_dict()
    updates = [
        {
            name: tensor - of_base[name]
            for name, tensor in model.merge_and_unload().state_dict().items()
        }
        for model in (whole, half)
    ]
    for name, update in updates[0].items():
        if trained.method.scales_linearly:
            torch.testing.assert_close(updates[1][name], update / 2, atol=1e-5, rtol=0)
        elif update.any():
            assert 0.3 < updates[1][name].norm() / update.norm() < 0.7


def at_strength(trained: Trained, fresh: Any, strength: float) -> Any:
    """What was saved, loaded by plain PEFT and set to a strength."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(fresh), trained.folder).eval()
    parameters = dict(model.named_parameters())
    saved = parameters.keys() & trained.start.keys()  # not what another one contains
    tensors = {name: parameters[name].detach() for name in trained.start if name in saved}
    start = trained.start if trained.method.needs_start else {}
    for name, values in trained.method.at_strength(tensors, start, strength).items():
        parameters[name].data.copy_(values)
    return model


def in_double(model: Any) -> Any:
    """The model in double precision, and with it layers that have a note of their dtype."""
    for module in model.modules():
        if vars(module).get("dtype") == torch.float32:
            module.dtype = torch.float64
    return model.double()


def test_it_has_as_many_parameters_as_it_says(trained: Trained) -> None:
    shape = read_shape(MODEL)
    assert shape is not None
    assert trained.trained_numbers == trained.method.parameters(shape)
    assert trained.frozen_numbers == trained.method.frozen_parameters(shape)


def test_the_update_that_is_read_is_what_merging_adds(
    trained: Trained, fresh: Any, brief: Callable[..., TrialConfig]
) -> None:
    def read() -> dict[str, torch.Tensor]:
        trial, base = brief(type(trained.method)), fresh.state_dict()
        found = updates(trial, trained.folder, base, fresh, torch.device("cpu"))
        return {each.name: each.tuned() - each.base_OI for each in found}

    merged = copy.deepcopy(fresh)
    if trained.method.merges:
        model = peft.PeftModel.from_pretrained(merged, trained.folder)
        merged = model.merge_and_unload()
    of_base = fresh.state_dict()
    added = {name: tensor - of_base[name] for name, tensor in merged.state_dict().items()}
    expected = {name: each for name, each in added.items() if each.ndim == 2 and each.any()}
    if not expected:
        with pytest.raises(CannotInspect):
            read()
        return
    found = {name: each for name, each in read().items() if each.any()}
    assert found.keys() == expected.keys()
    for name, update_OI in found.items():
        torch.testing.assert_close(update_OI, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "method", [each for each in ADAPTERS if each.takes_4bit], ids=lambda method: method.name
)
def test_on_4_bits_it_starts_and_trains_as_it_says(method: type[Method]) -> None:
    base = load_model(MODEL.model_copy(update={"load_in_4bit": True})).eval()
    expected = logits(base)
    settings = method.example()
    adapted = Adapted(base, settings, STEPS, SAMPLES)
    difference = (logits(adapted.model.eval()) - expected).abs().max()
    assert (difference <= 1e-4) == method.starts_at_base
    train(adapted.model, settings)
    assert (logits(adapted.model) - expected).abs().max() > 1e-2
    with adapted.without() as alone:
        torch.testing.assert_close(logits(alone), expected, atol=1e-6, rtol=0)
    assert adapted.remove()


class StopAt(ListReporter):
    """Asks the trial to stop after its second step."""

    def stop_requested(self) -> bool:
        return self.measurements[-1].step == 2


@pytest.fixture(scope="module")
def brief(
    sweep_config: SweepConfig,
    make_trial: Callable[..., TrialConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., TrialConfig]:
    """Makes a trial of a few steps with two questions at the end, which continues earlier ones."""
    text = tmp_path_factory.mktemp("text") / "general.txt"  # which some methods start from
    text.write_text("the river is long\n")
    left_out = {"retention": (), "ood": (), "general_text": str(text), "kl_prompts": 0}
    evaluation = sweep_config.eval.model_copy(update={"limit": 2, **left_out})
    cache = tmp_path_factory.mktemp("base")
    settings = {
        "eval": vars(evaluation),
        "data": {"validation_fraction": 0},
        "train": {"steps": 5, "report_every": 5, "batch_size": 2, "micro_batch_size": 2},
        "learning_rate": LEARNING_RATE,
        "base_dir": str(evaluated_base(sweep_config, cache, eval=evaluation)),
    }

    def trial(method: type[Method], *earlier: str) -> TrialConfig:
        made = make_trial(**settings, earlier_attempts=earlier)
        return made.model_copy(update={"method": method.example()})

    return trial


@pytest.mark.parametrize("method", ADAPTERS, ids=lambda method: method.name)
def test_stopped_and_resumed_it_equals_undisturbed(
    method: type[Method], brief: Callable[..., TrialConfig]
) -> None:
    """Each step's loss and the weights at the end are the same, bit for bit."""

    undisturbed, reporter = brief(method), ListReporter()
    train_adapter(undisturbed, reporter)
    stopped = brief(method)
    with pytest.raises(StopTrial):
        train_adapter(stopped, StopAt())
    resumed, again = brief(method, stopped.output_dir), ListReporter()
    train_adapter(resumed, again)
    losses = [[m.metrics[TRAIN_LOSS] for m in each.measurements] for each in (reporter, again)]
    assert losses[1] == losses[0][2:]
    weights, others = (load_file(weights_file(each)) for each in (undisturbed, resumed))
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def weights_file(trial: TrialConfig) -> Path:
    return Path(trial.weights_dir, "adapter_model.safetensors")
