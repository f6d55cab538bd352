"""The winner of the quickstart, exported through the command line and loaded as users load it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import PROJECT, Command
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord

pytestmark = pytest.mark.timeout(600)
TOKENS = torch.tensor([[5, 9, 17, 23, 42, 3]])


def export(sweep: Path, to: Path, *arguments: object) -> Path:
    command = [sys.executable, "-m", "analysis", "export", sweep, "--to", to, *arguments]
    done = subprocess.run(
        list(map(str, command)), cwd=PROJECT, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{to}\n"
    return to


def best(sweep: Path, recipe: str) -> TrialRecord:
    records = [r for r in Ledger(sweep).trials() if r.config.recipe == recipe]
    return max(records, key=lambda record: record.metric("in_domain/acc_mean") or 0)


def logits(auto_class: Any, folder: str | Path) -> torch.Tensor:
    model = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def as_its_card_says(folder: Path) -> dict[str, Any]:
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("PATH", str(folder)), found)  # noqa: S102 - as a reader would
    return found


def test_the_adapter_and_the_merged_model_compute_what_the_trial_did(
    quickstart: tuple[Path, Command], tmp_path: Path
) -> None:
    sweep, _ = quickstart
    record = best(sweep, "lora")
    assert record.weights_dir is not None
    expected = logits(AutoPeftModelForCausalLM, record.weights_dir)
    adapter = export(sweep, tmp_path / "adapter", "--trial", record.number)
    merged = export(sweep, tmp_path / "merged", "--trial", record.number, "--merge")
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM, adapter), expected)
    difference = (logits(AutoModelForCausalLM, merged) - expected).abs().max()
    assert difference <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert ModelCard.load(adapter / "README.md").data.library_name == "peft"
    assert ModelCard.load(merged / "README.md").data.library_name == "transformers"
    assert AutoTokenizer.from_pretrained(merged)("relay 7").input_ids
    for folder in (adapter, merged):
        loaded = as_its_card_says(folder)
        tokens = loaded["tokenizer"]("relay 7", return_tensors="pt").input_ids
        assert loaded["model"](tokens).logits.isfinite().all()


def test_a_full_model_is_written_as_it_is(quickstart: tuple[Path, Command], tmp_path: Path) -> None:
    sweep, _ = quickstart
    record = best(sweep, "full")
    assert record.weights_dir is not None
    to = export(sweep, tmp_path / "full", "--trial", record.number)
    expected = logits(AutoModelForCausalLM, record.weights_dir)
    torch.testing.assert_close(logits(AutoModelForCausalLM, to), expected, atol=0, rtol=0)


def test_without_a_number_it_is_the_recommended_one(
    quickstart: tuple[Path, Command], tmp_path: Path
) -> None:
    sweep, command = quickstart
    [said] = [line for line in command.output.splitlines() if line.startswith("Recommended:")]
    number = said.split("trial ")[1].split()[0]
    card = ModelCard.load(export(sweep, tmp_path / "winner") / "README.md")
    assert card.text.lstrip().startswith(f"# quickstart, trial {number}")
    assert "recommends this trial" in card.text
