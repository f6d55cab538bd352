"""What charts of the models' insides draw is what was found inside."""

from __future__ import annotations

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.report.inspection_section import inspection_figures
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.inspection.inspection_records import (
    AttentionDrift,
    InspectionFolder,
    InspectionRecord,
    MatrixChange,
    RepresentationDrift,
)


def matrix(
    layer: int, module: str, norm: float, *values: float, intruders: int | None = None
) -> MatrixChange:
    return MatrixChange(
        layer=layer,
        module=module,
        shape=(8, 8),
        rank_limit=4,
        relative_norm=norm,
        singular_values=values,
        intruders=intruders,
    )


def attention(layer: int, *js: float) -> AttentionDrift:
    others = ("js_without_first", "entropy_shift", "entropy_shift_without_first")
    return AttentionDrift(layer=layer, js=js, **dict.fromkeys(others, (0.0, 0.0)))


def record(number: int, size: float) -> InspectionRecord:
    """The layers in another order than theirs."""
    return InspectionRecord(
        number=number,
        trial_id=f"synthetic-id-{number:04d}",
        ended=1.7e9 + 60,
        matrices=(
            matrix(1, "mlp.up", 2 * size, 8.0, 4.0, 2.0, intruders=number),
            matrix(0, "attn.q", size, 3.0, intruders=number),
            matrix(0, "mlp.up", 3 * size, 5.0, 5.0, intruders=number),
        ),
        attention=(attention(0, size, 2 * size), attention(1, size / 2, 0.0)),
        representation=tuple(
            RepresentationDrift(layer=n, cka_drift=0.9, cka_drift_without_first=n / 10)
            for n in range(3)
        ),
        prompts=4,
        tokens=1200,
    )


def test_lines_are_means_over_matrices_and_maps_have_one_scale(tmp_path):
    folder = SyntheticSweep(trials=2, items=4, full_every=2).write(tmp_path)
    for number, size in ((0, 0.1), (1, 0.2)):
        InspectionFolder(folder).write(record(number, size))
    results = Results(open_sweeps([folder]))
    updates, heads, curves = inspection_figures(results)
    sizes = {f"synthetic-id-{number:04d}": size for number, size in ((0, 0.1), (1, 0.2))}
    for kind, figure in (("norm", updates), ("attention", heads)):
        assert {chart.key for chart in figure.charts} == {f"{kind}-{trial}" for trial in sizes}
        for chart in figure.charts:
            [drawn] = chart.data
            size = sizes[chart.key.removeprefix(f"{kind}-")]
            assert drawn["y"] == ["0", "1"]
            if kind == "norm":
                assert drawn["x"] == ["up", "q"]
                assert drawn["z"] == [[3 * size, size], [2 * size, None]]
                assert (drawn["zmin"], drawn["zmax"]) == (0, pytest.approx(0.6))
            else:
                assert drawn["z"] == [[size, 2 * size], [size / 2, 0]]
                assert (drawn["zmin"], drawn["zmax"]) == (0, pytest.approx(0.4))
    spectra, representation = curves.charts
    for trace in spectra.data:
        assert trace["x"] == [1, 2, 3]
        # One that has ended has no share left.
        assert trace["y"] == pytest.approx([1, (0.5 + 0 + 1) / 3, (0.25 + 0 + 0) / 3])
    for trace in representation.data:
        assert (trace["x"], trace["y"]) == ([0, 1, 2], [0.0, 0.1, 0.2])


def test_maps_are_of_the_recommended_trial_other_recipes_and_the_largest_capacities(tmp_path):
    folder = SyntheticSweep(trials=16, items=4).write(tmp_path)
    for number in range(16):
        InspectionFolder(folder).write(record(number, 0.1))
    results = Results(open_sweeps([folder]))
    best = {g.capacity and g.capacity.number: g.best for g in results.groups}
    wanted = [results.recommendation.trial, best[None], *(best[r] for r in (64, 16) if r in best)]
    ids = dict.fromkeys(trial.config.trial_id for trial in wanted)
    updates, *_, against = inspection_figures(results)
    assert [chart.key for chart in updates.charts] == [f"norm-{trial}" for trial in [*ids][:3]]
    assert sorted(against.charts[0].data[0]["x"]) == list(range(16))
