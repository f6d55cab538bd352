"""Which trials are worth a look inside, where nobody says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainables.records import SweepRecord, TrialRecord, TrialStatus


def notable_trials(sweep: SweepRecord, records: Iterable[TrialRecord]) -> list[int]:
    """The Pareto front, the best of each rank, and the best of full fine-tuning; by number.

    Of complete trials with weights. Best is by the sweep's first objective, and among equals by
    the next ones.
    """
    signs = _signs(sweep)
    losses = {
        record.number: values
        for record in records
        if record.status is TrialStatus.COMPLETE
        and record.weights_dir
        and (values := _losses(signs, record)) is not None
    }
    best: dict[object, int] = {}
    for record in records:
        if record.number not in losses:
            continue
        group = record.config.lora.rank if record.config.lora else "full"
        if group not in best or losses[record.number] < losses[best[group]]:
            best[group] = record.number
    return sorted({*_front(losses), *best.values()})


def _signs(sweep: SweepRecord) -> dict[str, int]:
    """Metric to 1 where it shall be low, -1 where high, in the order of the objectives."""
    objectives = sweep.config["objectives"]
    assert isinstance(objectives, list)  # noqa: S101 - the sweep file's schema sees to it
    return {o["metric"]: 1 if o["mode"] == "min" else -1 for o in objectives}


def _losses(signs: dict[str, int], record: TrialRecord) -> list[float] | None:
    values = [record.metric(metric) for metric in signs]
    losses = [s * v for s, v in zip(signs.values(), values, strict=True) if v is not None]
    return losses if len(losses) == len(values) else None


def _front(losses: dict[int, list[float]]) -> list[int]:
    return [n for n in losses if not any(_dominates(other, losses[n]) for other in losses.values())]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
