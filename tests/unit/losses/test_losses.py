"""Losses against their formulas: values, gradients, and the ends of their range."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from trainables.losses import LOSSES, Loss
from trainables.losses.asft import Asft
from trainables.losses.base import Tokens
from trainables.losses.chi_squared import ChiSquared
from trainables.losses.dft import Dft
from trainables.losses.eaft import Eaft
from trainables.losses.hellinger import Hellinger
from trainables.losses.kl import Kl
from trainables.losses.l2 import L2
from trainables.losses.talr import Talr

T, V = 6, 30
TARGETS_T = torch.randint(V, (T,), generator=torch.Generator().manual_seed(1))
SEQUENCES_T = torch.tensor([0, 0, 0, 1, 2, 2])


def some_logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(T, V, generator=torch.Generator().manual_seed(seed))


def tokens(logits_TV: torch.Tensor, base_TV: torch.Tensor) -> Tokens:
    nll_T = cross_entropy(logits_TV, TARGETS_T, reduction="none")
    return Tokens(nll_T, TARGETS_T, logits_TV, base_TV)


def value_and_gradient(loss: Loss, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a loss of a model that is not the base: each token's (T,), and of their sum (T, V)."""
    logits_TV = some_logits(seed).requires_grad_()
    losses_T = loss.token_losses(tokens(logits_TV, some_logits(3)))
    weights_T = loss.token_weights(losses_T.detach(), SEQUENCES_T)
    (weights_T * losses_T).sum().backward()
    assert logits_TV.grad is not None
    return (weights_T * losses_T).detach(), logits_TV.grad


SFT = LOSSES.find("sft")()
NEUTRAL = [Talr(floor=1.0), Eaft(alpha=0.0), Kl(beta=0.0), L2(beta=0.0)]


@pytest.mark.parametrize("loss", NEUTRAL, ids=lambda loss: loss.name)
def test_at_one_end_it_is_the_loss_of_sft(loss: Loss) -> None:
    for ours, expected in zip(value_and_gradient(loss), value_and_gradient(SFT), strict=True):
        torch.testing.assert_close(ours, expected)


def test_without_an_anchor_asft_is_dft() -> None:
    for ours, expected in zip(
        value_and_gradient(Asft(beta=0)), value_and_gradient(Dft()), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_the_divergence_is_that_of_torch_and_vanishes_at_the_base() -> None:
    base_TV, tuned_TV = some_logits(3), some_logits(2)
    expected_T = kl_div(
        tuned_TV.log_softmax(-1), base_TV.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    own_T = value_and_gradient(Kl(beta=0.5))[0] - value_and_gradient(SFT)[0]
    torch.testing.assert_close(own_T, 0.5 * expected_T)
    anchored_T = value_and_gradient(Asft(beta=0.5))[0] - value_and_gradient(Dft())[0]
    torch.testing.assert_close(anchored_T, 0.5 * expected_T)
    at_base = [value_and_gradient(loss, seed=3) for loss in (Kl(beta=5.0), SFT)]
    for ours, expected in zip(*at_base, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_weights_of_talr_are_the_best_of_their_sum_and_entropy() -> None:
    losses_T = torch.tensor([0.5, 1.5, 1.0, 3.0, 2.0, 4.0])
    weights_T = Talr(floor=0.0).token_weights(losses_T, SEQUENCES_T)
    tau = 3.0  # the median of 1, 3 and 3
    torch.testing.assert_close(weights_T, (-losses_T / tau).exp())

    def objective(w_T: torch.Tensor) -> float:
        return float((w_T * losses_T).sum() + tau * (w_T * w_T.log()).sum())

    best_T = weights_T / weights_T.sum()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        other_T = best_T * torch.exp(0.1 * torch.randn(T, generator=generator))
        assert objective(best_T) < objective(other_T / other_T.sum())
    assert Talr(floor=0.4).token_weights(losses_T, SEQUENCES_T).min() == pytest.approx(0.4)


def test_talr_weighs_tokens_that_are_all_learned() -> None:
    assert Talr().token_weights(torch.zeros(T), SEQUENCES_T).tolist() == [1.0] * T


@pytest.mark.parametrize("words", [V, 8])
def test_the_weights_of_eaft_are_shares_of_the_largest_entropy(words: int) -> None:
    count = min(20, words)
    logits_TV = torch.zeros(3, words)
    logits_TV[1, 0] = 100.0
    logits_TV[2, :2] = 100.0
    nll_T = torch.ones(3)
    found_T = Eaft().token_losses(Tokens(nll_T, TARGETS_T[:3], logits_TV))
    expected_T = torch.tensor([1.0, 0.0, math.log(2) / math.log(count)])
    torch.testing.assert_close(found_T, expected_T)
    torch.testing.assert_close(
        Eaft(alpha=2.0).token_losses(Tokens(nll_T, TARGETS_T[:3], logits_TV)), expected_T**2
    )


@pytest.mark.parametrize(
    ("loss", "value", "weight"), [(ChiSquared(), -0.75, 0.5), (Hellinger(), -0.5, 0.25)]
)
def test_losses_of_the_ratio_start_with_known_values_and_weights(
    loss: Loss, value: float, weight: float
) -> None:
    losses_T, gradient_TV = value_and_gradient(loss, seed=3)
    torch.testing.assert_close(losses_T, torch.full((T,), value))
    torch.testing.assert_close(gradient_TV, weight * value_and_gradient(SFT, seed=3)[1])


def test_chi_squared_is_least_at_twice_the_base() -> None:
    nll_T = torch.tensor([1.0], requires_grad=True)
    base_TV = torch.tensor([[0.0, math.log(2 * math.e - 1)]])  # nll 1 + ln 2
    loss_T = ChiSquared().token_losses(Tokens(nll_T, torch.tensor([0]), base_TV=base_TV))
    loss_T.sum().backward()
    assert loss_T.item() == pytest.approx(-1.0)
    assert float(nll_T.grad) == pytest.approx(0.0, abs=1e-6)


def test_l2_is_the_squared_distance_of_what_is_trained() -> None:
    model, base = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    expected = 0.5 * (model.weight - base.weight).square().sum()
    torch.testing.assert_close(L2(beta=0.5).penalty(model, base), expected)
