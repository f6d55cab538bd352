"""The report in a real browser: it draws every figure, raises nothing, asks for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.records.schema import TrialStatus

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    sweep = SyntheticSweep(
        trials=24,
        failures={5: TrialStatus.FAILED, 6: TrialStatus.STOPPED_EARLY},
        prompt="<script>window.injected = true</script> {}",
    ).write(folder / "sweep")
    file = folder / "report.html"
    file.write_text(render(Results(open_sweeps([sweep]))), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        opened = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=list(QUIET)
        )
        yield opened
        opened.close()


def visit(browser: Any, file: Path, width: int) -> tuple[Any, list[str], list[str]]:
    """A page, opened at a width, with its errors and the addresses it asked for."""
    errors, requests = list[str](), list[str]()
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: m.type in ("error", "warning") and errors.append(m.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    return page, errors, requests


@pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])
def test_every_figure_is_drawn_and_fits_and_nothing_is_loaded(
    browser: Any, report: Path, width: int
):
    page, errors, requests = visit(browser, report, width)
    assert errors == []
    assert requests == [report.as_uri()]
    assert page.evaluate("window.injected === undefined")
    plots = page.evaluate(
        """[...document.querySelectorAll(".plot")].map((plot) => {
          const box = plot.querySelector("svg.main-svg")?.getBoundingClientRect();
          return {
            key: plot.id, width: box?.width ?? 0, height: box?.height ?? 0,
            marks: plot.querySelectorAll(
              ".scatterlayer path, .barlayer path, .heatmaplayer image").length,
            outer: plot.getBoundingClientRect().width,
          };
        })"""
    )
    assert len(plots) >= 16
    for plot in plots:
        assert plot["marks"] > 0, plot
        assert plot["height"] > 150, plot
        assert 200 < plot["width"] <= plot["outer"] + 1, plot
    root = "document.documentElement"
    assert not page.evaluate(f"{root}.scrollWidth > {root}.clientWidth")
    cut = page.evaluate(
        """[...document.querySelectorAll(".plot")].flatMap((plot) => {
          const outer = plot.getBoundingClientRect();
          return [...plot.querySelectorAll("svg text")].filter((text) => {
            const box = text.getBoundingClientRect();
            return box.width > 0 && (box.left < outer.left - 2 || box.right > outer.right + 2
              || box.top < outer.top - 2 || box.bottom > outer.bottom + 2);
          }).map((text) => `${plot.id}: ${text.textContent}`);
        })"""
    )
    assert cut == []
    page.close()


def test_the_page_prints_with_every_detail_open_and_has_a_dark_scheme(
    browser: Any, report: Path, tmp_path: Path
):
    page, errors, _ = visit(browser, report, 1280)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    ink = page.evaluate("getComputedStyle(document.querySelector('svg .xtitle')).fill")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = [int(colour.split("(")[1].split(",")[0]) for colour in (ink, paper)]
    assert red[0] > 200
    assert red[1] < 40
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert page.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert errors == []
    page.close()
