"""What a method's hooks and a loss do in training, in any micro-batches and after a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import peft
import pytest
import torch
from small_trials import Run
from torch.nn.utils.rnn import pad_sequence

from trainables.data.dataset import training_order
from trainables.data.tokenized import trial_inputs
from trainables.losses import LOSSES
from trainables.losses.base import Loss, Tokens
from trainables.losses.dft import Dft
from trainables.methods.lora import Lora
from trainables.models.loading import load_model
from trainables.training import trainer
from trainables.training.reporter import ListReporter, StopTrial
from trainables.workers.method import trial_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]

TWO_STEPS = {"steps": 2, "report_every": 2, "max_grad_norm": 1e9}
THREE_STEPS = {"steps": 3, "report_every": 3, "max_grad_norm": 1e9}


class Ones(Loss):
    """Takes the path of weighted tokens to the loss of SFT."""

    def token_weights(self, losses_T: Any, sequences_T: Any) -> Any:
        return torch.ones_like(losses_T)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("micro_batch", [8, 2])
def test_dft_is_that_of_trl(
    is_fused: bool,
    micro_batch: int,
    make_trial: MakeTrial,
    run: RunTrial,
    trl_curve: Callable[..., list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "_fused_head_is_exact", lambda *_: is_fused)
    trial = make_trial(learning_rate=1e-2, train={"micro_batch_size": micro_batch}, loss=Dft())
    theirs = trl_curve(trial, Lora(rank=4, alpha=8).peft_config(10), loss_type="dft")
    assert run(trial).curve() == pytest.approx(theirs, abs=1e-5)


def test_tokens_of_equal_weights_give_the_loss_of_sft(make_trial: MakeTrial, run: RunTrial) -> None:
    train = {"micro_batch_size": 2}
    weighted = run(make_trial(train=train).model_copy(update={"loss": Ones()}))
    assert weighted.curve() == pytest.approx(run(make_trial(train=train)).curve(), abs=1e-5)


TOKEN_LOSSES = [each() for each in LOSSES if not each.reads_base_weights]


@pytest.mark.parametrize("loss", TOKEN_LOSSES, ids=lambda loss: loss.name)
def test_a_loss_reads_the_model_and_the_base_at_each_labelled_token(
    loss: Loss, make_trial: MakeTrial, run: RunTrial
) -> None:
    """The second step's loss and gradient are those of whole logits, computed by hand."""
    trial = make_trial(learning_rate=1e-2, train=TWO_STEPS).model_copy(update={"loss": loss})
    trained_run = watched(trial, Watched(rank=4, alpha=8), run)
    base = load_model(trial.model)
    adapted = peft.get_peft_model(base, Watched(rank=4, alpha=8).peft_config(2))
    for parameter, values in zip(trained(adapted), Watched.values[1], strict=True):
        parameter.data.copy_(values)
    _, tokenized = trial_inputs(trial)
    order = training_order(len(tokenized.train), 16, trial.seed)[8:]
    samples = [tokenized.train[number] for number in order]
    ids_BS = pad_sequence([torch.tensor(each["input_ids"]) for each in samples], True)
    labels_BS = pad_sequence([torch.tensor(each["labels"]) for each in samples], True, -100)
    is_labelled_BS = labels_BS[:, 1:] != -100
    targets_T = labels_BS[:, 1:][is_labelled_BS]
    logits_TV = adapted(input_ids=ids_BS).logits[:, :-1][is_labelled_BS]
    with torch.no_grad():
        base_TV = load_model(trial.model)(input_ids=ids_BS).logits[:, :-1][is_labelled_BS]
    nll_T = torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
    losses_T = loss.token_losses(Tokens(nll_T, targets_T, logits_TV, base_TV))
    sequences_T = is_labelled_BS.nonzero()[:, 0]
    mean = (loss.token_weights(losses_T.detach(), sequences_T) * losses_T).mean()
    mean.backward()
    assert trained_run.curve()[1] == pytest.approx(mean.item(), abs=1e-5)
    own = torch.cat([p.grad.flatten() for p in trained(adapted)])
    torch.testing.assert_close(Watched.gradients[1], own, atol=1e-5, rtol=1e-3)


class Watched(Lora):
    """LoRA that notes each step's gradients and number, and whether they are there after it."""

    gradients: ClassVar[list[torch.Tensor]] = []
    values: ClassVar[list[list[torch.Tensor]]] = []
    steps: ClassVar[list[tuple[int, bool]]] = []

    def before_step(self, model: Any) -> None:
        self.values.append([p.detach().clone() for p in trained(model)])
        self.gradients.append(torch.cat([p.grad.flatten() for p in trained(model)]))

    def after_step(self, model: Any, step: int) -> None:
        self.steps.append((step, all(p.grad is not None for p in trained(model))))


class Penalised(Watched):
    """Its penalty has the gradient 0.5 everywhere."""

    def penalty(self, model: Any) -> torch.Tensor:
        return 0.5 * torch.stack([parameter.sum() for parameter in trained(model)]).sum()


def trained(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def watched(trial: TrialConfig, method: Watched, run: RunTrial) -> Run:
    Watched.gradients.clear()
    Watched.values.clear()
    Watched.steps.clear()
    return run(trial.model_copy(update={"method": method}))


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_a_step_has_the_penalty_once_and_its_loss_without_it(
    micro_batch: int, make_trial: MakeTrial, run: RunTrial
) -> None:
    train = {**THREE_STEPS, "steps": 1, "report_every": 1, "micro_batch_size": micro_batch}
    plain = watched(make_trial(train=train), Watched(rank=4, alpha=8), run)
    (without,) = Watched.gradients
    penalised = watched(make_trial(train=train), Penalised(rank=4, alpha=8), run)
    torch.testing.assert_close(Watched.gradients[0] - without, torch.full_like(without, 0.5))
    assert penalised.curve() == pytest.approx(plain.curve(), abs=1e-4)


def test_a_method_sees_each_step_s_clipped_gradients(make_trial: MakeTrial, run: RunTrial) -> None:
    train = {**THREE_STEPS, "max_grad_norm": 0.1, "micro_batch_size": 2}
    watched(make_trial(train=train), Watched(rank=4, alpha=8), run)
    assert Watched.steps == [(1, True), (2, True), (3, True)]
    assert [float(each.norm()) for each in Watched.gradients] == pytest.approx([0.1] * 3, rel=1e-4)


class Restarting(Watched):
    def restarts_optimizer(self, model: Any, step: int) -> bool:
        return True


def test_a_method_can_restart_the_optimizer_after_a_step(
    make_trial: MakeTrial, run: RunTrial
) -> None:
    """Adam's first step moves each number by the learning rate, whatever its gradient."""
    train = {**THREE_STEPS, "schedule": "constant", "warmup": 0, "weight_decay": 0}
    trial = make_trial(train=train, learning_rate=1e-3)
    watched(trial, Restarting(rank=4, alpha=8), run)
    before, after = (torch.cat([p.flatten() for p in Watched.values[step]]) for step in (1, 2))
    is_large = Watched.gradients[1].abs() > 1e-5
    assert is_large.float().mean() > 0.5
    steps = (after - before)[is_large].abs()
    torch.testing.assert_close(steps, torch.full_like(steps, 1e-3), rtol=2e-3, atol=0)


class Faster(Lora):
    def rate(self, parameter: str) -> float:
        return 2.0


class OnlyB(Lora):
    def rate(self, parameter: str) -> float:
        return 0.0 if ".lora_A." in parameter else 1.0


class FrozenA(Lora):
    def is_trained(self, parameter: str) -> bool:
        return ".lora_A." not in parameter


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_method_s_rates_multiply_the_trial_s_at_each_step(
    schedule: str, make_trial: MakeTrial, run: RunTrial
) -> None:
    train = {"max_grad_norm": 1e9, "schedule": schedule, "warmup": 0.3}

    def trial(learning_rate: float, method: type[Lora]) -> Run:
        own = make_trial(train=train, learning_rate=learning_rate)
        return run(own.model_copy(update={"method": method(rank=4, alpha=8)}))

    twice, faster = trial(2e-3, Lora), trial(1e-3, Faster)
    assert faster.curve() == twice.curve()
    rates = [[run.curve("train/learning_rate") for run in pair] for pair in [(faster, twice)]]
    assert rates[0][1] == pytest.approx([2 * rate for rate in rates[0][0]])
    assert trial(1e-2, OnlyB).curve() == pytest.approx(trial(1e-2, FrozenA).curve(), abs=1e-6)


class Counting(OnlyB):
    """Keeps a count in the model that only its own state carries over."""

    def after_step(self, model: Any, step: int) -> None:
        model.count = getattr(model, "count", torch.zeros(())) + step

    def extra_state(self, model: Any) -> dict[str, Any]:
        return {"count": model.count, "counts": model.count.expand(2, 3)}

    def load_extra_state(self, model: Any, tensors: dict[str, Any]) -> None:
        assert tensors["counts"].tolist() == [[tensors["count"]] * 3] * 2
        model.count = tensors["count"]

    def penalty(self, model: Any) -> Any:
        return getattr(model, "count", torch.zeros(())) * sum(p.sum() for p in trained(model))


class StopAt(ListReporter):
    def stop_requested(self) -> bool:
        return self.measurements[-1].step == 2


def test_a_resumed_training_has_the_method_s_own_state_and_rates(
    make_trial: MakeTrial, run: RunTrial
) -> None:
    def trial(**places: Any) -> TrialConfig:
        train = {"steps": 5, "report_every": 5, "schedule": "cosine", "warmup": 0.3}
        method = {"method": Counting(rank=4, alpha=8)}
        return make_trial(train=train, learning_rate=1e-2, **places).model_copy(update=method)

    undisturbed, first = run(trial()).curve(), trial()
    with pytest.raises(StopTrial):
        trial_function(first)(first, StopAt())
    assert run(trial(earlier_attempts=(first.output_dir,))).curve() == undisturbed[2:]
