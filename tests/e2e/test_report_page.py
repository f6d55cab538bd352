"""The report in a real browser: it draws every figure, raises nothing, asks for nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

PROJECT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
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
    command = [sys.executable, "-m", "analysis", "report", str(sweep), "--to", str(file)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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


class Visit:
    """A page, opened at a width, and all that it did.

    Attributes:
        errors: uncaught ones, and what was written to the console as such.
        requests: addresses it asked for.
    """

    def __init__(self, browser: Any, file: Path, width: int) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_load_state("networkidle")

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(params=[1280, 390], ids=["laptop", "phone"])
def visit(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Visit]:
    visit = Visit(browser, report, request.param)
    yield visit
    visit.page.close()


def test_the_page_raises_nothing_asks_for_nothing_and_runs_no_text(visit: Visit, report: Path):
    assert visit.errors == []
    assert visit.requests == [report.as_uri()]
    assert visit.evaluate("window.injected === undefined")


def test_every_figure_is_drawn_and_fits(visit: Visit):
    plots = visit.evaluate(
        """[...document.querySelectorAll(".plot")].map((plot) => {
          const svg = plot.querySelector("svg.main-svg");
          const box = svg?.getBoundingClientRect();
          return {
            key: plot.id, drawn: !!svg, width: box?.width ?? 0, height: box?.height ?? 0,
            marks: plot.querySelectorAll(
              ".scatterlayer path, .barlayer path, .heatmaplayer image").length,
            outer: plot.getBoundingClientRect().width,
          };
        })"""
    )
    assert len(plots) >= 16
    for plot in plots:
        assert plot["drawn"], plot
        assert plot["marks"] > 0, plot
        assert plot["width"] > 200, plot
        assert plot["height"] > 150, plot
        assert plot["width"] <= plot["outer"] + 1, plot


def test_nothing_is_wider_than_the_screen_and_no_label_is_cut_off(visit: Visit):
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not visit.evaluate(wide)
    cut = visit.evaluate(
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


def test_it_prints_with_every_detail_open(browser: Any, report: Path, tmp_path: Path):
    visit = Visit(browser, report, 1280)
    file = tmp_path / "report.pdf"
    visit.page.pdf(path=str(file))
    assert file.stat().st_size > 50_000
    assert visit.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert visit.errors == []
    visit.page.close()


def test_the_dark_scheme_has_light_text_on_dark(browser: Any, report: Path):
    visit = Visit(browser, report, 1280)
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_timeout(500)
    ink = visit.evaluate("getComputedStyle(document.querySelector('svg .xtitle')).fill")
    paper = visit.evaluate("getComputedStyle(document.body).backgroundColor")
    red = [int(colour.split("(")[1].split(",")[0]) for colour in (ink, paper)]
    assert red[0] > 200
    assert red[1] < 40
    visit.page.close()


def test_rates_that_span_no_power_of_ten_have_numbers_on_their_axis(browser: Any, tmp_path: Path):
    ledger = Ledger(SyntheticSweep(trials=8, items=4, full_every=0).write(tmp_path / "sweep"))
    for index, record in enumerate(ledger.trials()):
        rate = 2e-4 * 4 ** (index / 7) / record.config.lora.scaling
        config = record.config.model_copy(update={"learning_rate": rate})
        ledger.write_trial(record.model_copy(update={"config": config}))
    file = tmp_path / "report.html"
    file.write_text(render(Results(open_sweeps([tmp_path / "sweep"]))), encoding="utf-8")
    visit = Visit(browser, file, 1280)
    ticks = "#step-size-in_domain-acc_mean .xtick text"
    told = visit.evaluate(f"[...document.querySelectorAll('{ticks}')].map((t) => t.textContent)")
    assert len(told) >= 2
    visit.page.close()
