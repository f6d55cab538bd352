"""What the model card says of an exported trial, and how it has it loaded and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import change_base, record_sweep, repeat_of, scores, trial, with_metrics
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from analysis.export.model_card import Kind, _loading, _prompting, model_card
from analysis.export.serving import serving
from analysis.sweeps import open_sweeps
from trainables.config import DataConfig, ModelConfig, Replay
from trainables.records.ledger import Ledger
from trainables.records.schema import TaskScore, TrialRecord

SETTINGS = {"base_model_name_or_path": "some/model", "revision": None, "r": 8}
TASK = TaskScore(
    role="retention", metric="acc", filter="none", value=0.875, stderr=0.01, chance=0.25,
    choices=4, items=128,
)  # fmt: skip


def card(folder: Path, number: int, kind: Kind = "full", **settings: Any) -> ModelCard:
    [sweep] = open_sweeps([folder])
    record = next(record for record in sweep.trials if record.number == number)
    return ModelCard(model_card(kind, record, sweep, SETTINGS | settings))


def full(number: int, gain: float, forgetting: float, **more: Any) -> TrialRecord:
    own = {"retention/b/acc": 0.75, "forgetting/b": forgetting}
    return trial(number, method="full", metrics=scores(gain, forgetting, **own), **more)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep whose trial 1 gains most for little."""
    ledger = record_sweep(
        tmp_path / "tiny", full(0, 0.5, 0.0), full(1, 0.9, 0.1), full(2, 1.0, 0.5)
    )
    change_base(ledger, scores={"b": TASK})
    return tmp_path / "tiny"


def test_the_card_of_the_winner(sweep: Path) -> None:
    found = card(sweep, 1, transformers_version="5.3.1")
    for fact in (
        "recommends this trial: the knee of the front's 3 trials",
        "max in_domain/acc_mean, min forgetting/mean",
        "git commit `c0ffee`",
        "| `in_domain/acc_mean` | 0.250 | 0.900 | +0.650 |",
        "| `forgetting/mean` | +0.000 | +0.100 | +0.100 |",
        "| b | retention | acc | 128 | 0.875 ± 0.010 | 0.750 | -0.125 | +0.100 |",
        "Scores that the trial was picked by are optimistic: it is the best of 3.",
        "Written by Transformers 5.3.1: read it with 5 or later.",
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
    assert "of its run in the search, one of the best of 3 and so optimistic" in text
    # The mean gains less and forgets less: neither is better.
    ledger.write_trial(full(6, 0.8, 0.05, confirms=1))
    text = card(sweep, 1).text
    assert "forgetting/mean +0.075" in text
    assert "of its run in the search, and another training may differ" in text


def test_a_trial_chosen_by_hand_is_said_to_be(sweep: Path) -> None:
    text = card(sweep, 0).text
    assert "This trial was chosen by hand; the sweep recommends trial 1." in text
    assert "optimistic" not in text
    first = Ledger(sweep).trials()[1]
    Ledger(sweep).write_trial(repeat_of(first, 7, {}))
    assert "a repeat of trial 1 with seed 7, was chosen by hand" in card(sweep, 7).text


def test_small_changes_are_neither_hidden_nor_signed(tmp_path: Path) -> None:
    drift = "kl/base_to_tuned"
    record = trial(0, method="full", metrics=scores(0.2496, -0.0004))
    assert record.last is not None
    record = with_metrics(record, {**record.last.metrics, drift: 0.00041234})
    ledger = record_sweep(tmp_path / "tiny", record)
    change_base(ledger, metrics={**scores(0.25, 0.0), drift: 0.0})
    text = card(tmp_path / "tiny", 0).text
    assert f"| `{drift}` | 0 | 0.000412 | +0.000412 |" in text
    assert "| `in_domain/acc_mean` | 0.250 | 0.250 | +0.000 |" in text
    assert "| `forgetting/mean` | +0.000 | +0.000 | +0.000 |" in text


def test_warnings_of_base_and_sweep_are_listed_once(sweep: Path) -> None:
    ledger = Ledger(sweep)
    assert "Warnings" not in card(sweep, 0).text
    warnings = ("3 of 9 training samples are longer", "2 of 4 items of t ask\nword for word")
    change_base(ledger, warnings=(*warnings, warnings[0]))
    record = ledger.sweep()
    start = record.provenance.model_copy(update={"warnings": ("train.batch_size is 24",)})
    ledger.write_sweep(record.model_copy(update={"provenance": start}))
    assert (
        "## Warnings\n\n- 3 of 9 training samples are longer\n"
        "- 2 of 4 items of t ask word for word\n- train.batch_size is 24\n\n## Training"
    ) in card(sweep, 0).text


def test_a_prompt_that_asks_for_code_stays_in_its_block() -> None:
    prompt = "Complete:\n```python\n{{ code }}\n```\n"
    text = _prompting(DataConfig(path="x", prompt=prompt), ModelConfig(name="m"))
    blocks = [token for token in MarkdownIt().parse(text) if token.type == "fence"]
    assert [block.content for block in blocks] == [f"{prompt}\n", "{{ completion }}\n"]


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        ({"messages": "turns", "answers": "all"}, ["template", "all answers were trained."]),
        ({"messages": "turns", "system": "Be brief."}, ["the last answer of each", "Be brief."]),
        ({"text": "story"}, ["the plain text of the field `story`"]),
        ({"chat_template": True}, ["turns of the chat template", '`{"enable_thinking": false}`']),
    ],
)
def test_a_card_says_what_was_trained(data: dict[str, Any], facts: list[str]) -> None:
    model = ModelConfig(name="some/model", chat_template_args={"enable_thinking": False})
    text = _prompting(DataConfig.model_validate({"path": "some/data", **data}), model)
    assert all(fact in text for fact in facts)


@pytest.mark.parametrize(
    ("path", "replayed", "named"),
    [
        ("rows.jsonl", "general.jsonl", None),
        ("rows.jsonl", "org/general", ["org/general"]),
        ("org/own", "org/general", ["org/own", "org/general"]),
        ("org/own", "org/own", ["org/own"]),  # another subset of it
    ],
)
def test_the_front_matter_names_the_hub_s_data_sets(
    path: str, replayed: str, named: list[str] | None, tmp_path: Path
) -> None:
    record = full(0, 0.5, 0.0)
    data = DataConfig(path=path, replay=Replay(path=replayed, share=0.5))
    config = record.config.model_copy(update={"data": data})
    record_sweep(tmp_path / "tiny", record.model_copy(update={"config": config}))
    assert card(tmp_path / "tiny", 0).data.to_dict().get("datasets") == named


@pytest.mark.parametrize(
    ("kind", "dtype", "is_said"),
    [("merged", "bfloat16", True), ("merged", "float32", False), ("adapter", "bfloat16", False)],
)
def test_that_merging_rounds_is_said(kind: Kind, dtype: str, is_said: bool, tmp_path: Path) -> None:
    model = ModelConfig.model_validate({"name": "some/model", "dtype": dtype})
    record_sweep(tmp_path / "tiny", trial(0, scores(0.5, 0.0), model=model))
    text = card(tmp_path / "tiny", 0, kind).text
    assert ("merging rounds the weights to bfloat16" in text) is is_said


@pytest.mark.parametrize("kind", ["adapter", "merged", "full"])
def test_the_code_loads_a_model_with_its_own_code_and_end(kind: Kind) -> None:
    model = ModelConfig(name="some/model", trust_remote_code=True, eos_token="</turn>")
    code = _loading(kind, model)
    compile(code, "card", "exec")
    assert code.count("from_pretrained(") == code.count(", trust_remote_code=True") == 2
    assert ("eos_token_id = tokenizer.eos_token_id" in code) is (kind == "adapter")
    assert "trust" not in _loading(kind, ModelConfig(name="some/model"))


def adapter(model: dict[str, Any] | None = None, **settings: Any) -> str:
    """How an adapter is served."""
    config = ModelConfig.model_validate({"name": "some/model"} | (model or {}))
    return serving("tiny", config, SETTINGS | settings)


@pytest.mark.parametrize(
    ("rank", "largest"), [(1, 1), (2, 8), (16, 16), (24, 32), (65, 128), (257, 320), (512, 512)]
)
def test_vllm_makes_room_for_the_rank(rank: int, largest: int) -> None:
    command = (
        "vllm serve some/model --dtype bfloat16 --enable-lora "
        f"--max-lora-rank {largest} --lora-modules tiny=PATH"
    )
    assert adapter(r=rank) == f"```sh\n{command}\n```\n\nRequests name the model `tiny`."


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({"load_in_4bit": True}, "some/model --quantization bitsandbytes --dtype bfloat16"),
        ({"trust_remote_code": True}, "some/model --trust-remote-code --dtype bfloat16"),
        ({"chat_template": "t.jinja"}, "some/model --tokenizer PATH --dtype bfloat16"),
        ({"dtype": "float32"}, "some/model --enable-lora"),  # its LoRA kernels take no fp32
    ],
)
def test_vllm_has_the_options_of_the_trial(model: dict[str, Any], options: str) -> None:
    text = adapter(model)
    assert f"vllm serve {options} " in text
    assert ("computes with adapters in 16 bits alone" in text) is ("dtype" in model)


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
    text, _, command = adapter({"dtype": "float32"}, **settings).partition("\n\n")
    assert f"({reason})" in text
    assert "--merge" in text
    assert command == "```sh\nvllm serve PATH --dtype float32\n```"
