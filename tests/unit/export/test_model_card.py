"""What the model card says of an exported trial, and how it has it loaded and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from builders import adapter, change_base, record_sweep, scores, trial
from huggingface_hub import ModelCard

from analysis.export.model_card import Kind, model_card
from analysis.export.serving import serving
from analysis.sweeps import open_sweeps
from trainables.config import ModelConfig
from trainables.losses import LOSSES
from trainables.methods import Method
from trainables.methods.bottleneck import Bottleneck
from trainables.records.ledger import Ledger
from trainables.records.schema import TaskScore, TrialRecord

SETTINGS = {"base_model_name_or_path": "some/model", "revision": None, "r": 8}
LORA = adapter()
TASK = TaskScore(
    role="retention", metric="acc", filter="none", value=0.875, stderr=0.01, chance=0.25,
    choices=4, items=128,
)  # fmt: skip


def card(folder: Path, number: int, kind: Kind = "model", **settings: Any) -> ModelCard:
    [sweep] = open_sweeps([folder])
    record = next(record for record in sweep.trials if record.number == number)
    return ModelCard(model_card(kind, record, sweep, SETTINGS | settings))


def full(number: int, gain: float, forgetting: float, **more: Any) -> TrialRecord:
    own = {"retention/b/acc": 0.75, "forgetting/b": forgetting}
    rate = 1e-5 * (1 + more.get("confirms", number))
    return trial(
        number, method="full", metrics=scores(gain, forgetting, **own), learning_rate=rate, **more
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep whose trial 1 gains most for little."""
    ledger = record_sweep(
        tmp_path / "tiny", full(0, 0.5, 0.0), full(1, 0.9, 0.1), full(2, 1.0, 0.5)
    )
    change_base(ledger, scores={"b": TASK})
    return tmp_path / "tiny"


def test_the_card_of_the_winner(sweep: Path) -> None:
    found = card(sweep, 1)
    for fact in (
        "recommends this trial: the knee of the front's 3 trials",
        "max in_domain/acc_mean, min forgetting/mean",
        "git commit `c0ffee`",
        "| `in_domain/acc_mean` | 0.250 | 0.900 | +0.650 |",
        "| `forgetting/mean` | +0.000 | +0.100 | +0.100 |",
        "| b | retention | acc | 128 | 0.875 ± 0.010 | 0.750 | -0.125 | +0.100 |",
        "Scores that the trial was picked by are optimistic: it is the best of 3.",
        "```sh\nvllm serve PATH\n```",
    ):
        assert fact in found.text
    data = found.data.to_dict()
    assert data["base_model"] == "some/model"
    assert (data["library_name"], data["metrics"]) == ("transformers", ["acc"])
    assert "full-fine-tuning" in data["tags"]
    [result] = found.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("b", "acc", 0.75)


def test_scores_of_other_seeds_replace_the_optimistic_ones(sweep: Path) -> None:
    ledger = Ledger(sweep)
    ledger.write_trial(full(5, 0.8, 0.1, confirms=1))
    text = card(sweep, 1).text
    assert "in_domain/acc_mean 0.800, forgetting/mean +0.100" in text
    assert "of its run in the search; those with other seeds are at the top" in text
    ledger.write_trial(full(6, 0.8, 0.05, confirms=1))
    text = card(sweep, 1).text
    assert "forgetting/mean +0.075" in text


def served(model: dict[str, Any] | None = None, method: Method = LORA, **settings: Any) -> str:
    """How an adapter is served."""
    config = ModelConfig.model_validate({"name": "some/model"} | (model or {}))
    return serving("tiny", config, method, SETTINGS | settings)


@pytest.mark.parametrize(
    ("rank", "largest"), [(1, 1), (2, 8), (16, 16), (24, 32), (65, 128), (257, 320), (512, 512)]
)
def test_vllm_makes_room_for_the_rank(rank: int, largest: int) -> None:
    command = (
        "vllm serve some/model --dtype bfloat16 --enable-lora "
        f"--max-lora-rank {largest} --lora-modules tiny=PATH"
    )
    assert served(r=rank) == f"```sh\n{command}\n```\n\nRequests name the model `tiny`."


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("DoRA", {"use_dora": True}),
        ("modules saved whole", {"modules_to_save": ["lm_head"]}),
        ("adapted experts", {"target_parameters": ["down_proj"]}),
        ("a rank above 512", {"r": 513}),
    ],
)
def test_an_adapter_that_vllm_refuses_is_served_merged(
    reason: str, settings: dict[str, Any]
) -> None:
    text, _, command = served({"dtype": "float32"}, **settings).partition("\n\n")
    assert f"({reason})" in text
    assert "--merge" in text
    assert command == "```sh\nvllm serve PATH --dtype float32\n```"


class Elsewhere(Method):
    """An adapter that vLLM does not serve."""

    title: ClassVar[str] = "elsewhere"


class Unmerged(Elsewhere):
    """One that cannot be merged either."""

    merges: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("method", "facts"),
    [(Elsewhere(), ("--merge", "vllm serve PATH")), (Unmerged(), ("cannot be merged",))],
)
def test_an_adapter_of_another_kind_is_served_merged_or_not_at_all(
    method: Method, facts: tuple[str, ...]
) -> None:
    text = served(method=method)
    assert all(fact in text for fact in ("not elsewhere", *facts))
    assert ("vllm serve" in text) == method.merges


def test_the_card_names_recipe_method_and_loss(tmp_path: Path) -> None:
    method = adapter(rslora=True, target_modules=("v_proj", "q_proj"))
    record = trial(0, scores(0.5, 0.0), method=method, recipe="wide", loss=LOSSES.find("dft")())
    record_sweep(tmp_path, record)
    found = card(tmp_path, 0, "adapter")
    for fact in (
        "An adapter of `some/model`, trained by LoRA with the loss DFT (wide, rank 8",
        "- recipe: wide",
        "- method: LoRA (Hu et al. 2021, 2106.09685)",
        "- rank: 8",
        "- alpha: 16",
        "- scaling: 5.65685",
        "- target modules: q_proj, v_proj",
        "- rslora: on",
        "- dora: off",
        "- loss: DFT (Wu et al. 2025, 2508.05629)",
        "AutoPeftModelForCausalLM",
    ):
        assert fact in found.text
    assert found.data.to_dict()["tags"] == ["lora", "peft", "dft", "forgetting-sweeps"]


def test_an_adapter_that_peft_does_not_have_says_what_adds_it(tmp_path: Path) -> None:
    record_sweep(tmp_path, trial(0, scores(0.5, 0.0), method=Bottleneck(size=8)))
    text = card(tmp_path, 0, "adapter").text
    assert text.index("import trainables.tuners") < text.index("AutoPeftModelForCausalLM")
