"""Attention and representation drift against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from trainables.inspection.activations import linear_cka_drift
from trainables.inspection.attention import LayerAttention
from trainables.inspection.inspection_records import AttentionDrift


def causal(*shape: int, seed: int) -> torch.Tensor:
    """Random causal attention (B, H, S, S)."""
    scores = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~torch.ones(shape[-2:]).tril().bool(), -math.inf).softmax(-1)


def drift(base: torch.Tensor, tuned: torch.Tensor) -> AttentionDrift:
    layer = LayerAttention(0)
    layer.add(base, tuned, torch.ones(base.shape[0], base.shape[-1]))
    return layer.result()


def test_drift_equals_a_loop_over_queries() -> None:
    """With padding; every number once more, by SciPy and plain sums."""
    base, tuned = causal(2, 3, 7, 7, seed=1), causal(2, 3, 7, 7, seed=2)
    lengths = (7, 4)
    mask = torch.tensor([[int(s < length) for s in range(7)] for length in lengths])
    layer = LayerAttention(0)
    for part in (slice(0, 1), slice(1, 2)):  # of a batch each
        layer.add(base[part], tuned[part], mask[part])
    result = layer.result()
    entropy = lambda p: -sum(x * math.log(x) for x in p if x > 0)  # noqa: E731
    for head in range(3):
        seen: dict[str, list[float]] = {name: [] for name in type(result).model_fields}
        for prompt, length in enumerate(lengths):
            for query in range(length):
                p = base[prompt, head, query, : query + 1].double().numpy()
                q = tuned[prompt, head, query, : query + 1].double().numpy()
                seen["js"].append(jensenshannon(p, q, base=2) ** 2)
                if query >= 1:
                    shift = (entropy(q) - entropy(p)) / math.log(query + 1)
                    seen["entropy_shift"].append(shift)
                    p, q = p[1:] / p[1:].sum(), q[1:] / q[1:].sum()
                    js = jensenshannon(p, q, base=2) ** 2
                    seen["js_without_first"].append(0.0 if math.isnan(js) else js)
                if query >= 2:
                    shift = (entropy(q) - entropy(p)) / math.log(query)
                    seen["entropy_shift_without_first"].append(shift)
        for name, values in seen.items():
            if name != "layer":
                assert getattr(result, name)[head] == pytest.approx(np.mean(values), abs=1e-6), name


def test_a_move_to_the_first_key_is_seen_with_it_and_not_without() -> None:
    """Both models look at keys 1 to 3 in the same proportions, one of them mostly at key 0."""
    base, tuned = (torch.zeros(1, 1, 4, 4) for _ in range(2))
    base[..., 3, :] = torch.tensor([0.1, 0.3, 0.3, 0.3])
    tuned[..., 3, :] = torch.tensor([0.7, 0.1, 0.1, 0.1])
    base[..., :3, 0] = tuned[..., :3, 0] = 1
    result = drift(base, tuned)
    assert result.js[0] > 0.07
    assert result.js_without_first[0] == pytest.approx(0, abs=1e-9)
    assert result.entropy_shift[0] < 0
    assert result.entropy_shift_without_first[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("positions", "width"), [(40, 12), (12, 40)])
def test_cka_equals_its_formula(positions: int, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    X, Y = torch.randn(2, positions, width, generator=generator).double().numpy()
    a, b = X - X.mean(0), Y - Y.mean(0)
    norm = np.linalg.norm
    expected = 1 - norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
    drift = linear_cka_drift(torch.tensor(X), torch.tensor(Y))
    assert 0.1 < drift == pytest.approx(expected, abs=1e-10)


def test_cka_of_unrelated_features_is_one() -> None:
    X, Y = torch.zeros(2, 4, 1)
    X[:, 0], Y[:, 0] = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1])
    assert linear_cka_drift(X, Y) == pytest.approx(1)
    assert linear_cka_drift(X, torch.ones(4, 1)) == 1
    assert linear_cka_drift(torch.ones(4, 1), torch.ones(4, 1)) == 0
