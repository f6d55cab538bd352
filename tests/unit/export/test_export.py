"""`python -m analysis export`: which trial, what the card says, and what is refused."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    SWEEP_ID,
    change_base,
    change_config,
    record_sweep,
    repeat_of,
    running,
    scores,
    trial,
    with_metrics,
)
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.numpy import load_file, save_file
from small_disk import fill, small_disk

from analysis.__main__ import main
from analysis.export.model_card import Kind, _loading, _prompting, model_card
from analysis.export.serving import serving
from analysis.export.weights import export
from analysis.report.answer import answer
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.config import DataConfig, ModelConfig, Replay
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import TaskScore, TrialRecord, TrialStatus
from trainables.storage.disk import content_digest


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two full trials with weights, one without, one that ended early, one that runs."""
    folder = tmp_path / "tiny"
    record_sweep(
        folder,
        trained(folder, 0, gain=0.5, forgetting=0.0),
        trained(folder, 1, gain=0.9, forgetting=0.1),
        trial(2, method="full", metrics=scores(1.0, 0.5)),
        trial(3, status=TrialStatus.STOPPED_EARLY, metrics=scores(0.3, 0.1)),
        running(4),
    )
    return folder


def trained(folder: Path, number: int, gain: float, forgetting: float) -> TrialRecord:
    """A trial with files where its weights should be, as it tells from before a move."""
    weights = Ledger(folder).folder.attempt(number, 1) / "weights"
    weights.mkdir(parents=True)
    save_file({"number": np.array(number)}, weights / "model.safetensors")
    (weights / "config.json").write_text("{}")
    (weights / "README.md").write_text("of the trainer")
    there = f"/elsewhere/tiny/trials/{number:04d}/attempt_1/weights"
    metrics = scores(gain, forgetting, **{"retention/b/acc": 0.75, "forgetting/b": forgetting})
    return trial(number, method="full", metrics=metrics, weights_dir=there)


def number_in(folder: Path) -> int:
    return int(load_file(folder / "model.safetensors")["number"])


def refused(capsys: pytest.CaptureFixture[str], sweep: Path, to: Path, *arguments: str) -> str:
    """The one line that says why."""
    assert main(["export", str(sweep), "--to", str(to), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_the_recommended_trial_is_written_with_its_card(sweep: Path, tmp_path: Path) -> None:
    to = export(sweep, tmp_path / "out" / "winner")
    assert {file.name for file in to.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert number_in(to) == 1
    card = ModelCard.load(to / "README.md")
    assert "recommends this trial: the knee of the front's 3 trials" in card.text
    assert "max in_domain/acc_mean, min forgetting/mean" in card.text
    told = "The sweep was not finished then: 4 of 4 trials ended, 1 running or interrupted."
    assert told in card.text
    assert f"`{SWEEP_ID}-0001`" in card.text
    assert "git commit `c0ffee`" in card.text
    assert "| `in_domain/acc_mean` | 0.250 | 0.900 | +0.650 |" in card.text
    assert "| `forgetting/mean` | +0.000 | +0.100 | +0.100 |" in card.text
    assert "Scores that the trial was picked by are optimistic: it is the best of 4." in card.text
    assert "/elsewhere" not in card.content
    other = ModelCard.load(export(sweep, tmp_path / "other", number=0) / "README.md")
    assert "optimistic" not in other.text
    Ledger(sweep).write_trial(trial(5, method="full", confirms=1, metrics=scores(0.8, 0.1)))
    confirmed = ModelCard.load(export(sweep, tmp_path / "confirmed") / "README.md")
    assert "this trial: by the means over repeats with other seeds, " in confirmed.text
    assert "in_domain/acc_mean 0.800, forgetting/mean +0.100" in confirmed.text
    assert "| `in_domain/acc_mean` | 0.250 | 0.900 | +0.650 |" in confirmed.text
    own = "These scores are of its run in the search, one of the best of 4 and so optimistic; how"
    assert f"{own} it did with other seeds is said at the top." in confirmed.text
    weights = "whose weights are kept, has in_domain/acc_mean 0.900, forgetting/mean +0.100."
    assert weights in confirmed.text
    # The mean gains less and forgets less: neither is better.
    Ledger(sweep).write_trial(trial(6, method="full", confirms=1, metrics=scores(0.8, 0.05)))
    told = ModelCard.load(export(sweep, tmp_path / "other_seeds") / "README.md").text
    assert "forgetting/mean +0.075" in told
    assert "of its run in the search, and another training may differ; how it did" in told
    assert "optimistic" not in told


def test_a_small_drift_is_not_written_as_none(tmp_path: Path) -> None:
    folder, drift = tmp_path / "tiny", "kl/base_to_tuned"
    record = trained(folder, 0, gain=0.5, forgetting=0.0)
    assert record.last is not None
    metrics = {**record.last.metrics, drift: 0.00041234}
    ledger = record_sweep(folder, with_metrics(record, metrics))
    change_config(ledger, budget={"trials": 1})
    change_base(ledger, metrics={**scores(0.25, 0.0), drift: 0.0})
    card = ModelCard.load(export(folder, tmp_path / "out") / "README.md")
    assert f"| `{drift}` | 0 | 0.000412 | +0.000412 |" in card.text
    assert "optimistic" not in card.text  # it is the only one
    assert "| task |" not in card.text  # none was scored
    assert "not finished" not in card.text


def test_a_card_writes_no_minus_before_a_change_that_rounds_to_none(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    ledger = record_sweep(folder, trained(folder, 0, gain=0.2496, forgetting=-0.0004))
    change_base(ledger, metrics=scores(0.25, 0.0))
    card = ModelCard.load(export(folder, tmp_path / "out") / "README.md")
    assert "| `in_domain/acc_mean` | 0.250 | 0.250 | +0.000 |" in card.text
    assert "| `forgetting/mean` | +0.000 | +0.000 | +0.000 |" in card.text


def test_a_card_has_what_was_told_of_the_data_and_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    ledger = record_sweep(folder, trained(folder, 0, gain=0.5, forgetting=0.0))
    card = ModelCard.load(export(folder, tmp_path / "before") / "README.md")
    assert "Warnings" not in card.text
    told = ("3 of 9 training samples are longer", "2 of 4 items of t ask\nword for word")
    change_base(ledger, warnings=(*told, told[0]))
    few = {"warnings": ("train.batch_size is 24", told[1])}
    record, start = ledger.sweep(), ledger.sweep().provenance
    later = start.model_copy(update={"created": start.created + 1e6, "warnings": ("no longer",)})
    record = record.model_copy(update={"provenance": start.model_copy(update=few)})
    ledger.write_sweep(record.started_again(record.config, later))
    card = ModelCard.load(export(folder, tmp_path / "out") / "README.md")
    assert (
        "\n\n## Warnings\n\n- 3 of 9 training samples are longer\n"
        "- 2 of 4 items of t ask word for word\n- train.batch_size is 24\n\n## Training\n\n"
    ) in card.text


def test_a_prompt_that_asks_for_code_stays_in_its_block_without_controls(tmp_path: Path) -> None:
    prompt = "Complete:\n```python\n{{ code }}\n```\n"
    folder = tmp_path / "tiny"
    record = trained(folder, 0, gain=0.5, forgetting=0.0)
    data = record.config.data.model_copy(update={"prompt": f"\x1b\x07{prompt}"})
    config = record.config.model_copy(update={"data": data})
    record_sweep(folder, record.model_copy(update={"config": config}))
    card = ModelCard.load(export(folder, tmp_path / "out", number=0) / "README.md")
    blocks = [token for token in MarkdownIt().parse(card.text) if token.type == "fence"]
    assert [block.info for block in blocks] == ["python", "sh", "jinja", "jinja"]
    assert blocks[2].content == f"{prompt}\n"


def test_a_card_says_that_chats_were_trained(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    record = trained(folder, 0, gain=0.5, forgetting=0.0)
    data = record.config.data.model_copy(update={"messages": "turns", "system": "Be brief."})
    model = record.config.model.model_copy(
        update={"chat_template_args": {"enable_thinking": False}}
    )
    config = record.config.model_copy(update={"data": data, "model": model})
    record_sweep(folder, record.model_copy(update={"config": config}))
    card = ModelCard.load(export(folder, tmp_path / "out", number=0) / "README.md")
    assert "the last answer of each was trained" in card.text
    assert 'by the chat template with `{"enable_thinking": false}`;' in card.text
    assert card.text.count("jinja") == 1
    assert "without a system's turn began with\n\n```jinja\nBe brief.\n```" in card.text


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"messages": "turns", "answers": "all"}, "template; all answers were trained."),
        ({"text": "story"}, "Trained on the plain text of the field `story`, without prompts."),
        ({"chat_template": True}, "```\n\nas turns of the chat template."),
        ({}, "and answered with\n\n```jinja\n{{ completion }}\n```"),
    ],
)
def test_a_card_says_what_was_trained(data: dict[str, Any], told: str) -> None:
    config = DataConfig.model_validate({"path": "some/data", **data})
    assert _prompting(config, ModelConfig(name="some/model")).endswith(told)


TASK = TaskScore(
    role="retention", metric="acc", filter="none", value=0.875, stderr=0.01, chance=0.25,
    choices=4, items=128,
)  # fmt: skip


def test_the_front_matter_is_the_hubs(sweep: Path, tmp_path: Path) -> None:
    change_base(Ledger(sweep), scores={"b": TASK})
    card = ModelCard.load(export(sweep, tmp_path / "out", number=1) / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "some/model"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["metrics"] == ["acc"]
    assert "full-fine-tuning" in data["tags"]
    assert "license" not in data
    [result] = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("b", "acc", 0.75)
    line = "| b | retention | acc | 128 | 0.875 ± 0.010 | 0.750 | -0.125 | +0.100 |"
    assert line in card.text


def test_a_task_with_a_bar_in_its_name_keeps_to_its_cell(tmp_path: Path) -> None:
    record = trial(0, scores(0.5, 0.0, **{"retention/a|b/acc": 0.75}))
    ledger = record_sweep(tmp_path / "tiny", record)
    change_base(ledger, scores={"a|b": TASK})
    [sweep] = open_sweeps([tmp_path / "tiny"])
    html = MarkdownIt().enable("table").render(model_card("full", record, sweep, {}))
    assert "<td>a|b</td>\n<td>retention</td>\n<td>acc</td>" in html


def adapter(rank: int = 8, **settings: Any) -> str:
    """How its card says to serve it."""
    base = {"base_model_name_or_path": "some/model", "revision": None, "r": rank}
    return serving("tiny", ModelConfig(name="some/model"), base | settings)


def test_vllm_is_told_of_4_bits() -> None:
    model = ModelConfig(name="some/model", load_in_4bit=True)
    settings = {"base_model_name_or_path": "some/model", "revision": None, "r": 8}
    bits = "vllm serve some/model --quantization bitsandbytes --dtype bfloat16 --enable-lora"
    assert bits in serving("t", model, settings)
    assert "bitsandbytes" not in serving("t", model, None)


@pytest.mark.parametrize(("dtype", "told"), [("float32", " --dtype float32"), ("bfloat16", "")])
def test_vllm_is_told_not_to_round_a_whole_model_that_was_measured_in_fp32(
    dtype: str, told: str
) -> None:
    model = ModelConfig(name="some/model", dtype=dtype)
    command = f"```sh\nvllm serve PATH{told}\n```"
    settings = {"base_model_name_or_path": "some/model", "revision": None, "r": 8}
    assert serving("t", model, None) == command
    assert serving("t", model, settings | {"use_dora": True}).endswith(f"then\n\n{command}")


@pytest.mark.parametrize(
    ("dtype", "option", "rounded"),
    [("float32", "", True), ("bfloat16", "--dtype bfloat16 ", False)],
)
def test_vllm_computes_with_an_adapter_as_it_was_measured_or_else_the_card_says_so(
    dtype: str, option: str, rounded: bool
) -> None:
    """Its kernels of LoRA take no fp32; the base's files may be of fp16, whatever was measured."""
    settings = {"base_model_name_or_path": "some/model", "revision": None, "r": 8}
    said = serving("t", ModelConfig(name="some/model", dtype=dtype), settings)
    assert f"vllm serve some/model {option}--enable-lora" in said
    told = (
        "`t`. vLLM computes with adapters in 16 bits alone, and the scores were measured in fp32, "
        "in which it serves what is exported with `--merge`."
    )
    assert said.endswith(told) is rounded
    assert said.endswith("`t`.") is not rounded


_ROOM = [(1, 1), (2, 8), (16, 16), (24, 32), (33, 64), (64, 64), (65, 128), (129, 256), (256, 256)]


@pytest.mark.parametrize(("rank", "largest"), [*_ROOM, (257, 320), (512, 512)])
def test_vllm_is_told_to_make_room_for_the_rank(rank: int, largest: int) -> None:
    command = (
        "vllm serve some/model --dtype bfloat16 --enable-lora "
        f"--max-lora-rank {largest} --lora-modules tiny=PATH"
    )
    assert adapter(rank) == f"```sh\n{command}\n```\n\nRequests name the model `tiny`."


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("DoRA", {"use_dora": True}),
        ("modules saved whole", {"modules_to_save": ["lm_head"]}),
        ("adapted experts", {"target_parameters": ["down_proj"]}),
        ("a rank above 512", {"rank": 513}),
    ],
)
def test_an_adapter_that_vllm_refuses_is_served_merged(
    reason: str, options: dict[str, Any]
) -> None:
    told, _, command = adapter(**options).partition("\n\n")
    assert told == f"vLLM may refuse this adapter ({reason}): export the trial with `--merge`, then"
    assert command == "```sh\nvllm serve PATH\n```"


def test_an_exported_adapter_is_peft_s_and_its_card_has_it_served(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    model = ModelConfig(
        name="some/model",
        revision="c0ffee",
        chat_template="turns.jinja",
        trust_remote_code=True,
    )
    record_sweep(folder, trial(0, scores(0.5, 0.0), model=model, weights_dir="/gone/weights"))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    weights.mkdir(parents=True)
    saved = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/cache/some/model"}
    (weights / "adapter_config.json").write_text(json.dumps(saved))
    save_file({"number": np.array(0)}, weights / "adapter_model.safetensors")
    embedded = Path(__file__).parents[3] / "trainables" / "embedded" / "model"
    for file in embedded.glob("tokenizer*"):
        (weights / file.name).write_bytes(file.read_bytes())
    to = export(folder, tmp_path / "out", trust_remote_code=True)
    named = {"base_model_name_or_path": "some/model", "revision": "c0ffee"}
    assert json.loads((to / "adapter_config.json").read_text()) == saved | named
    text = ModelCard.load(to / "README.md").text
    assert (
        "vllm serve some/model --trust-remote-code --revision c0ffee --tokenizer PATH "
        "--dtype bfloat16 --enable-lora --max-lora-rank 8 --lora-modules tiny=PATH"
    ) in text
    assert f"Written by Transformers {version('transformers')}: read it with" in text
    assert json.loads((to / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "TokenizersBackend"  # which Transformers 4 has not
    )


@pytest.mark.parametrize(
    ("settings", "ends_otherwise"),
    [({"eos_token": "</turn>"}, True), ({"chat_template": "turns.jinja"}, False)],
)
def test_an_adapter_whose_turns_end_otherwise_than_its_base_s_is_loaded_so(
    settings: dict[str, str], ends_otherwise: bool
) -> None:
    code = _loading("adapter", ModelConfig(name="some/model", **settings))
    ends = "model.generation_config.eos_token_id = tokenizer.eos_token_id"
    assert code.endswith(ends) is ends_otherwise
    assert 'tokenizer = AutoTokenizer.from_pretrained("PATH")' in code


@pytest.mark.parametrize("kind", ["adapter", "merged", "full"])
def test_a_model_of_own_code_is_loaded_with_it(kind: Kind) -> None:
    model = ModelConfig(name="some/model", trust_remote_code=True)
    code = _loading(kind, model)
    compile(code, "card", "exec")
    assert code.count("from_pretrained(") == code.count(", trust_remote_code=True") == 2
    assert "trust" not in _loading(kind, ModelConfig(name="some/model"))


def test_a_full_model_s_card_says_what_reads_and_serves_it(sweep: Path, tmp_path: Path) -> None:
    config = sweep / "trials/0001/attempt_1/weights/config.json"
    config.write_text(json.dumps({"transformers_version": "5.3.1"}))
    text = ModelCard.load(export(sweep, tmp_path / "out") / "README.md").text
    assert "Written by Transformers 5.3.1: read it with 5 or later." in text
    assert "```sh\nvllm serve PATH\n```" in text


@pytest.mark.parametrize(
    ("kind", "dtype", "told"),
    [
        ("merged", "bfloat16", True),
        ("merged", "float32", False),  # rounds by too little to tell
        ("adapter", "bfloat16", False),
    ],
)
def test_a_merged_model_s_card_says_that_its_scores_are_of_before_it_was_rounded(
    tmp_path: Path, kind: Kind, dtype: str, told: bool
) -> None:
    folder = tmp_path / "tiny"
    model = ModelConfig.model_validate({"name": "some/model", "dtype": dtype})
    record = trial(0, scores(0.5, 0.0), model=model)
    record_sweep(folder, record)
    [sweep] = open_sweeps([folder])
    settings = {"base_model_name_or_path": "some/model", "revision": None, "r": 8}
    text = model_card(kind, record, sweep, settings)
    said = "before merging; merging rounds the weights to bfloat16, which may change them a little."
    assert (said in text) is ("before merging" in text) is told


def adapter_of(base: str, folder: Path) -> Path:
    """A sweep of one adapter, whose base this machine may lack."""
    metrics, model = scores(0.5, 0.0), ModelConfig(name=base)
    record_sweep(folder, trial(0, metrics, model=model, weights_dir="/gone/weights"))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    weights.mkdir(parents=True)
    (weights / "adapter_config.json").write_text(json.dumps({"r": 8}))
    save_file({"number": np.array(0)}, weights / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_exported_where_its_base_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a laptop that the sweep was copied to."""
    gone, to = f"{tmp_path}/gone", tmp_path / "out"
    assert main(["export", str(adapter_of(gone, tmp_path / "tiny")), "--to", str(to)]) == 0
    out, err = capsys.readouterr()
    told = f"model.name: cannot find {gone}: no such file or folder: {gone}"
    assert err == f"warning: {told}; the adapter needs the sweep's base at that path\n"
    assert out == f"{to}\n"
    assert json.loads((to / "adapter_config.json").read_text())["base_model_name_or_path"] == gone
    assert f"`{gone}`" in (to / "README.md").read_text()


@pytest.mark.parametrize(
    ("base", "arguments", "remedy"),
    [
        ("/gone", ["--merge"], "put the sweep's base there, or leave --merge out"),
        ("/gone.gguf", [], "put the sweep's base there, or export it where the sweep ran"),
        (
            "package://none/model",
            [],
            "put the sweep's base there, or export it where the sweep ran",
        ),
    ],
)
def test_a_base_that_is_gone_is_not_blamed_on_the_target(
    base: str,
    arguments: list[str],
    remedy: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = refused(capsys, adapter_of(base, tmp_path / "tiny"), tmp_path / "out", *arguments)
    assert told.startswith(f"model.name: cannot find {base}: ")
    assert told.endswith(f"; {remedy}")
    assert not (tmp_path / "out").exists()


def test_a_base_that_was_replaced_is_not_merged_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sum would be of two models that never met; the adapter alone is still what it was."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    folder = adapter_of(str(base), tmp_path / "tiny")
    ledger = Ledger(folder)
    inputs = {"model.name": content_digest(base)}
    ledger.write_sweep(ledger.sweep().model_copy(update={"inputs": inputs}))
    told = refused(capsys, folder, tmp_path / "merged", "--merge")
    assert "has changed" not in told
    (base / "config.json").write_text("[]")
    changed = f"model.name: {base} has changed since the sweep's first start; "
    told = refused(capsys, folder, tmp_path / "merged", "--merge")
    assert told == f"{changed}put the sweep's base there, or leave --merge out"
    assert main(["export", str(folder), "--to", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert told == f"warning: {changed}the adapter needs the sweep's base at that path\n"


@pytest.mark.parametrize(
    ("path", "replayed", "named"),
    [
        ("rows.jsonl", None, None),
        ("org/own", "general.jsonl", ["org/own"]),
        ("rows.jsonl", "org/general", ["org/general"]),
        ("org/own", "org/general", ["org/own", "org/general"]),
        ("org/own", "org/own", ["org/own"]),  # another subset of it
    ],
)
def test_the_front_matter_names_the_hub_s_data_sets_that_were_trained_on(
    path: str, replayed: str | None, named: list[str] | None, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    record = trained(folder, 0, gain=0.5, forgetting=0.0)
    replay = Replay(path=replayed, share=0.5) if replayed else None
    config = record.config.model_copy(update={"data": DataConfig(path=path, replay=replay)})
    record_sweep(folder, record.model_copy(update={"config": config}))
    card = ModelCard.load(export(folder, tmp_path / "out", number=0) / "README.md")
    assert card.data.to_dict().get("datasets") == named


def test_a_trial_chosen_by_hand_is_said_to_be(sweep: Path, tmp_path: Path) -> None:
    to = export(sweep, tmp_path / "out", number=0)
    assert number_in(to) == 0
    text = (to / "README.md").read_text()
    assert "This trial was chosen by hand; the sweep recommends trial 1." in text


def test_a_repeat_chosen_by_hand_is_said_to_be_one(sweep: Path, tmp_path: Path) -> None:
    of_weights = trained(sweep, 7, gain=0.8, forgetting=0.1)
    first = Ledger(sweep).trials()[1]
    place = {"weights_dir": of_weights.weights_dir}
    record_sweep(sweep, repeat_of(first, 7, {}).model_copy(update=place))
    text = (export(sweep, tmp_path / "out", number=7) / "README.md").read_text()
    assert "This trial, a repeat of trial 1 with seed 7, was chosen by hand; the sweep" in text


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (2, "train.save_weights is false"),
        (3, "it is stopped early, and only complete trials keep theirs"),
        (4, "it is running, and only complete trials keep theirs"),
    ],
)
def test_a_trial_without_weights_is_refused_and_those_with_named(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, why: str
) -> None:
    assert refused(capsys, sweep, tmp_path / "out", "--trial", str(number)) == (
        f"--trial: trial {number} has no weights: {why}; with weights: trials 0, 1"
    )
    assert not (tmp_path / "out").exists()


def test_weights_of_a_sweep_that_is_now_where_this_one_was_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, folder = tmp_path / "sweeps" / "tiny", tmp_path / "moved"
    own = trained(folder, 0, gain=0.5, forgetting=0.0)
    other = Ledger(before).folder.attempt(0, 1) / "weights"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(b"of another sweep")
    record_sweep(folder, own.model_copy(update={"weights_dir": str(other)}))
    to = export(folder, tmp_path / "out")
    assert number_in(to) == 0
    monkeypatch.chdir(tmp_path)
    found = answer(Results(open_sweeps([Path("moved")])))
    assert found is not None
    assert found.weights == str(folder / "trials/0000/attempt_1/weights")
    shutil.rmtree(found.weights)
    with pytest.raises(UserError, match=f"this folder lacks those written to {other}"):
        export(folder, tmp_path / "none")
    found = answer(Results(open_sweeps([Path("moved")])))
    assert found is not None
    assert found.weights is None


@pytest.mark.parametrize("config", ["{", None], ids=["cut off", "missing"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_damaged_weights_are_not_blamed_on_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, config: str | None
) -> None:
    folder = tmp_path / "tiny"
    trained(folder, 0, gain=0.5, forgetting=0.0)
    record_sweep(folder, trial(0, scores(0.5, 0.0), method=method, weights_dir="/gone/weights"))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    (weights / "config.json").unlink()
    file = weights / ("adapter_config.json" if method == "lora" else "config.json")
    if config is not None:
        file.write_text(config)
    told = refused(capsys, folder, tmp_path / "out")
    assert told.startswith(f"--trial: its weights are damaged: {weights} (")
    assert str(file) in told
    assert not (tmp_path / "out").exists()


def test_weights_that_were_cut_off_are_refused(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by a copy that broke off: the exported model could not be loaded."""
    file = sweep / "trials/0001/attempt_1/weights/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    told = refused(capsys, sweep, tmp_path / "out")
    assert told.startswith(f"--trial: its weights are damaged: {file.parent} ({file} is damaged: ")
    assert told.endswith("; restore them from a copy, or give another trial")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_gone_are_missed(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        (sweep / f"trials/000{number}/attempt_1/weights").rename(tmp_path / f"gone{number}")
    assert refused(capsys, sweep, tmp_path / "out") == (
        "--trial: trial 1 has no weights: this folder lacks those written to /elsewhere/tiny/"
        "trials/0001/attempt_1/weights; no trial of the sweep has weights"
    )


def test_other_bad_input_is_refused(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    assert refused(capsys, sweep, to, "--trial", "7") == (
        "--trial: must be one of the sweep's, got 7; it has trials 0, 1, 2, 3, 4"
    )
    assert "has no adapter to merge" in refused(capsys, sweep, to, "--trial", "1", "--merge")
    assert "holds no sweep" in refused(capsys, tmp_path, to)
    assert refused(capsys, sweep, sweep) == f"--to: must be empty or new, got {sweep}"
    file = sweep / "sweep.json"
    assert refused(capsys, sweep, file) == f"--to: must be a folder, got the file {file}"
    assert "--to: cannot write to" in refused(capsys, sweep, file / "below")


def test_that_the_nearest_trial_breaks_a_constraint_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, to = tmp_path / "tiny", tmp_path / "out"
    record = trained(folder, 0, gain=0.5, forgetting=0.1)
    record_sweep(folder, record, constraints=["forgetting/mean <= 0.05"])
    assert main(["export", str(folder), "--to", str(to)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{to}\n"
    assert err.startswith("warning: trial 0 breaks a constraint: no trial keeps every constraint")
    assert "and this trial came nearest: no trial keeps" in (to / "README.md").read_text()
    assert main(["export", str(folder), "--to", str(tmp_path / "own"), "--trial", "0"]) == 0
    assert capsys.readouterr().err == ""


def test_a_sweep_without_a_complete_trial_recommends_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_sweep(tmp_path / "tiny", trial(0, status=TrialStatus.FAILED))
    assert refused(capsys, tmp_path / "tiny", tmp_path / "out") == (
        "--trial: the sweep recommends none, as no trial is complete with every objective; "
        "no trial of the sweep has weights"
    )


def test_a_half_written_export_of_before_is_no_obstacle(sweep: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    (left / "rubbish").touch()
    to = export(sweep, tmp_path / "out")
    assert not (to / "rubbish").exists()
    assert not left.exists()


@pytest.mark.parametrize("command", [["export", "--to", "x"], ["inspect"], ["watch"]])
def test_a_sweep_in_an_object_store_is_to_be_copied_first(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "s3://bucket/sweeps/mine"]) == 2
    assert "copy the sweep to this machine first" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["watch", "--once"], ["inspect"], ["export", "--to", "x"]])
def test_a_folder_may_be_below_the_user_s_home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    """As `report` and the sweep's own command take it, also where no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*command, "~/nothing"]) == 2
    assert f"holds no sweep: {tmp_path}/nothing;" in capsys.readouterr().err


def test_an_empty_folder_one_is_in_will_do(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["export", str(sweep), "--to", "."]) == 0
    assert (tmp_path / "here" / "model.safetensors").exists()


EMBEDDED = Path(__file__).parents[3] / "trainables" / "embedded" / "model"


def test_a_full_model_s_code_goes_with_it_where_it_is_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    trusted, plain = (ModelConfig(name="some/model", trust_remote_code=t) for t in (True, False))
    records = [trained(folder, number, gain=0.5, forgetting=0.0) for number in range(2)]
    for record, model in zip(records, (trusted, plain), strict=True):
        weights = folder / f"trials/{record.number:04d}/attempt_1/weights"
        (weights / "modeling_own.py").write_text("raise SystemExit")
        pickled = (f"pickled.{end}" for end in ("bin", "pt", "pth", "pkl", "pickle", "ckpt"))
        for name in (*pickled, "native.so", "vocab.spm", "tokenizer.jsonl"):
            (weights / name).touch()
        config = record.config.model_copy(update={"model": model})
        record_sweep(folder, record.model_copy(update={"config": config}))
    for number, files in enumerate([{"modeling_own.py"}, set()]):
        to = export(folder, tmp_path / str(number), number, trust_remote_code=number == 0)
        vocabulary = {"vocab.spm", "tokenizer.jsonl"}
        written = {"config.json", "model.safetensors", "README.md"} | vocabulary
        assert {file.name for file in to.iterdir()} == written | files


def test_a_damaged_tokenizer_is_not_blamed_on_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_of("/gone", tmp_path / "tiny")
    model = ModelConfig(name="/gone", eos_token="<eos>")
    record_sweep(folder, trial(0, scores(0.5, 0.0), model=model, weights_dir="/gone/weights"))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    (weights / "tokenizer_config.json").write_text("{")
    told = refused(capsys, folder, tmp_path / "out")
    assert told.startswith(f"--trial: its weights are damaged: {weights} (")
    (weights / "tokenizer_config.json").unlink()

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(shutil, "copyfile", refuse)  # as for a user who may not read everything
    told = refused(capsys, folder, tmp_path / "out")
    assert told.startswith(f"--trial: its weights are damaged: {weights} (")


def test_a_full_disk_is_not_blamed_on_the_weights(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill(disk)
        told = refused(capsys, sweep, disk / "out")
        assert told.startswith(f"--to: cannot write to {disk}/out: No space left on device; ")
        assert [file.name for file in disk.iterdir()] == ["filler"]
