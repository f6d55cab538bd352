"""The folder of a sweep that somebody else sends runs nothing and steers no terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_sweep
from builders import change_config
from rich.console import Console
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.watch import watch
from trainables.metric_keys import KL_BASE_TO_TUNED
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

PROJECT = Path(__file__).parents[3]
MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
STEERING = "\x1b]0;title\x07\x1b[2J\x9b31m"
PLACES = ("task", "reason", "prompt", "name", "metric", "params")


def hostile(folder: Path, place: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    if place == "task":
        monkeypatch.setitem(synthetic_sweep.TASKS, text, ("retention", 0.8))
    texts = {place: text} if place in ("reason", "prompt") else {}
    sweep = SyntheticSweep(trials=6, items=4, failures={3: TrialStatus.FAILED}, **texts)
    ledger = Ledger(sweep.write(folder))
    if place == "name":
        change_config(ledger, name=text)
    if place == "metric":
        aims = [{"metric": text, "mode": "min"}, {"metric": KL_BASE_TO_TUNED, "mode": "min"}]
        change_config(ledger, objectives=aims)
    for record in ledger.trials():
        params = record.params | ({f"lora/{text}": text} if place == "params" else {})
        last = record.last
        if last and place == "metric":
            last = last.model_copy(update={"metrics": last.metrics | {text: 0.5}})
        ledger.write_trial(record.model_copy(update={"params": params, "last": last}))
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_text_of_others_runs_nowhere(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hostile(tmp_path, place, MARKUP + STEERING, monkeypatch)
    for kind in ("html", "md"):
        assert main(["report", str(folder), "--format", kind]) == 0
    page, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("</script>") == page.count("<script")
    assert "<img" not in page
    assert "alert(1)" in page
    for block in re.findall(r'class="charts-data">(.*?)</script>', page, re.DOTALL):
        assert not re.search(r"<(img|script)", json.dumps(json.loads(block)))
    assert not re.search(r"(?<!\\)(\\\\)*<[a-z/!?]", markdown)
    console = Console(width=200, color_system=None)
    with console.capture() as live:
        watch(folder, once=True, console=console)
        watch(folder, once=False, console=console)
    assert main(["watch", f"{folder}/none{STEERING}"]) == 2
    for shown in (live.get(), capsys.readouterr().err, markdown):
        assert shown
        assert not {*shown} & {"\x1b", "\x07", "\x9b"}


def test_reading_a_sweep_loads_no_model_code(tmp_path: Path) -> None:
    folder = SyntheticSweep(trials=2, items=4).write(tmp_path)
    change_config(Ledger(folder), model={"name": "some/model", "trust_remote_code": True})
    code = (
        "import sys; from analysis.__main__ import main\n"
        f"assert main(['report', {str(folder)!r}]) == main(['watch', '--once', {str(folder)!r}])\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    loaded = done.stdout.partition("LOADED")[2].split()
    assert loaded, done.stderr
    assert not {"torch", "transformers", "ray"} & {*loaded}


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path: Path) -> None:
    folder = SyntheticSweep(trials=1, items=4).write(tmp_path / "sweep")
    (own := tmp_path / "own").write_text("mine")
    (folder / "report.html").symlink_to(own)
    assert main(["report", str(folder)]) == 0
    assert own.read_text() == "mine"
