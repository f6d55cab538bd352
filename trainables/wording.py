"""How settings, statuses and metrics are written wherever people read them."""

from __future__ import annotations

from trainables import metric_keys
from trainables.config import TrialConfig
from trainables.records import TrialStatus

ABSENT = "-"
_SIGNED = {
    metric_keys.FORGETTING_MEAN,
    metric_keys.FORGETTING_MAX,
    metric_keys.FORGETTING_NLL,
    metric_keys.OOD_GAP,
}


def setting(config: TrialConfig) -> str:
    """The point of the search in a few words, such as `lora, rank 8, alpha 16, lr 3.2e-04`."""
    parts: list[str] = [config.method]
    if config.lora:
        parts += [f"rank {config.lora.rank}", f"alpha {config.lora.alpha:g}"]
    return ", ".join([*parts, f"lr {rate(config.learning_rate)}"])


def status_in_full(status: TrialStatus) -> str:
    """Such as `out of memory`."""
    return status.value.replace("_", " ").lower()


def metric_text(key: str, value: float | None) -> str:
    """Shares and losses with three decimals, forgetting signed, other units compact."""
    if value is None:
        return ABSENT
    if key == metric_keys.LEARNING_RATE:
        return rate(value)
    metric = metric_keys.METRICS.get(key)
    # Keys that METRICS does not list are those of single tasks, which are shares.
    if metric is not None and metric.unit not in ("share", "nats/token"):
        return f"{value:.4g}"
    rounded = round(value, 3) + 0.0  # no -0.000
    return f"{rounded:+.3f}" if key in _SIGNED else f"{rounded:.3f}"


def rate(value: float) -> str:
    """A learning rate, such as `3.2e-04`."""
    return f"{value:.1e}"


def points(share: float) -> str:
    """A difference of shares in percentage points, such as `+3.1`."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"
