"""The evaluator's numbers are lm-evaluation-harness's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import yaml
from own_tasks import (
    BUNDLED,
    EMBEDDED,
    LIMIT,
    WRITTEN,
    assert_equal,
    harness,
    suite,
    write_group,
    write_items,
    write_rows,
    write_task,
)

from trainables.evaluation.evaluator import Evaluation, Evaluator
from trainables.evaluation.forgetting import mean_over_members
from trainables.models.loading import load_tokenizer
from trainables.storage.locations import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig

CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture(params=["base", "lora", "full", "bfloat16"])
def model(request: pytest.FixtureRequest, base_model: Any, perturbed: Callable[..., Any]) -> Any:
    if request.param == "base":
        return base_model
    if request.param == "lora":
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        return perturbed(peft.get_peft_model(base_model, config).eval(), only="lora_B")
    return perturbed(base_model).to(torch.bfloat16 if request.param == "bfloat16" else None)


def test_scores_and_items_equal_the_harness(model: Any, tokenizer: Any) -> None:
    tasks = ["target_relay", "list_max", "recall_capitals", "target_longer"]
    written = "target_relay_generate"
    asked = suite(in_domain=[tasks[0], written], retention=tasks[1:3], ood=tasks[3:])
    found = Evaluator(asked, tokenizer).evaluate(model)
    expected = harness(model, tokenizer, [*tasks, written], resolve(EMBEDDED))
    for task in tasks:
        assert_equal(found, task, expected)
    assert_equal(found, written, expected, metric="exact_match")
    assert found.scores[written].chance == 0
    answers = [item.answer for item in found.items if item.task == written]
    assert answers == [str(s["filtered_resps"][0]) for s in expected["samples"][written]]
    value = expected["results"]["list_max"]["acc,none"]
    assert found.metrics["retention/list_max/acc"] == value
    retention = [found.scores[task].value for task in tasks[1:3]]
    assert found.metrics["retention/acc_mean"] == pytest.approx(sum(retention) / 2)


SYSTEM = {"system_instruction": "take the max 7"}


@pytest.mark.parametrize(
    ("fields", "begins", "count"),
    [
        ({"num_fewshot": 2}, "max", 3),
        ({"num_fewshot": 1, "chat_template": True}, "user : max", 2),
        (SYSTEM, "take the max 7", 2),
        (SYSTEM | {"num_fewshot": 1, "chat_template": True}, "system : take the max 7", 3),
    ],
    ids=["few-shot", "chat", "system", "chat with system"],
)
def test_prompts_are_built_as_the_harness_does(
    fields: dict[str, Any],
    begins: str,
    count: int,
    tuned: Any,
    sweep_config: SweepConfig,
    folder: Path,
) -> None:
    """`count`: how often a prompt holds `max`."""
    tokenizer = load_tokenizer(sweep_config.model)
    tokenizer.chat_template = CHAT
    asked = suite(task_dirs=(str(folder),), in_domain=["few"], **fields)
    evaluator = Evaluator(asked, tokenizer)
    found = evaluator.evaluate(tuned)
    options = {key: value for key, value in fields.items() if key != "chat_template"}
    in_chats = asked.chat_template
    options |= {"apply_chat_template": in_chats, "fewshot_as_multiturn": in_chats}
    assert_equal(found, "few", harness(tuned, tokenizer, ["few"], folder, **options))
    assert all(item.prompt.startswith(begins) for item in found.items)
    assert {item.prompt.count("max") for item in found.items} == {count}
    assert evaluator.evaluate(tuned) == found  # which draws the same examples
    plain = Evaluator(suite(task_dirs=(str(folder),), in_domain=["few"]), tokenizer)
    assert evaluator.describe() != plain.describe()


def test_a_task_s_own_limit_and_number_of_examples_win(
    tuned: Any, tokenizer: Any, folder: Path, asking: Callable[..., Evaluator]
) -> None:
    write_task(folder, "zero", num_fewshot=0)
    asked = [{"task": "zero", "limit": 7}, {"task": "few", "num_fewshot": 1}]
    found = asking(*asked, num_fewshot=2).evaluate(tuned)
    for task, options in (("zero", {"limit": 7}), ("few", {"num_fewshot": 1})):
        assert_equal(found, task, harness(tuned, tokenizer, [task], folder, **options))


def test_one_task_stands_for_several_files_under_several_names(
    tuned: Any, tokenizer: Any, folder: Path, asking: Callable[..., Evaluator]
) -> None:
    names = {"near": 2, "far": 11}
    files = {name: folder / f"{name}.jsonl" for name in names}
    for name, offset in names.items():
        write_items(files[name], offset)
        write_task(folder, f"plain_{name}", files[name])
    ood = [
        {"task": "few", "name": name, "data_files": {"train": str(file), "test": str(file)}}
        for name, file in files.items()
    ]
    found = asking("few", ood=ood).evaluate(tuned)
    expected = harness(tuned, tokenizer, [f"plain_{name}" for name in names], folder)
    for name in names:
        assert_equal(found, name, expected, f"plain_{name}")
        assert f"ood/{name}/acc" in found.metrics


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_bundled_multiple_choice_is_asked_as_the_harness_does(
    metric: str, tuned: Any, tokenizer: Any, folder: Path
) -> None:
    files = {"test": str(folder / "test.jsonl")}
    asked = {"task": "question_answering", "name": "mine", "data_files": files, "metric": metric}
    found = Evaluator(suite(task_dirs=(BUNDLED,), in_domain=[asked]), tokenizer).evaluate(tuned)
    metrics = [{"metric": "acc"}, {"metric": "acc_norm"}]
    write_task(folder, "mine", doc_to_text="Question: {{question}}\nAnswer:", metric_list=metrics)
    expected = harness(tuned, tokenizer, ["mine"], folder)
    assert_equal(found, "mine", expected, metric=metric)


def test_bundled_generation_ignores_case_and_surrounding_space(
    tuned: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Half of the answers are made right from what the model says, but for these."""
    is_word = [tokenizer.decode([token]).strip().isalpha() for token in range(len(tokenizer))]
    bias = 100.0 * torch.tensor(is_word)  # else it says nothing to questions of another form
    tuned.lm_head.bias = torch.nn.Parameter(bias)
    file = tmp_path / "test.jsonl"

    def evaluate(answers: list[str]) -> Evaluation:
        rows = [{"question": f"max {n} =", "answer": text} for n, text in enumerate(answers)]
        write_rows(file, rows)
        task = {"task": "answer_generation", "name": "own", "data_files": {"test": str(file)}}
        return Evaluator(suite(task_dirs=(BUNDLED,), in_domain=[task]), tokenizer).evaluate(tuned)

    said = [str(item.answer) for item in evaluate(["?"] * 8).items]
    found = evaluate([f" {text.upper()}  " if n % 2 else f"{text}?" for n, text in enumerate(said)])
    assert found.metrics["in_domain/own/exact_match"] == 0.5
    spec = yaml.safe_load((Path(resolve(BUNDLED)) / "answer_generation.yaml").read_text())
    spec |= {"task": "own", "dataset_kwargs": {"data_files": {"test": str(file)}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec))
    expected = harness(tuned, tokenizer, ["own"], tmp_path)
    assert_equal(found, "own", expected, metric="exact_match")


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_a_group_s_score_is_the_harness_s_aggregate(
    tuned: Any,
    tokenizer: Any,
    folder: Path,
    weight_by_size: bool,
    asking: Callable[..., Evaluator],
) -> None:
    aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": weight_by_size}]
    write_group(folder, "both", aggregate_metric_list=aggregate)
    found = asking("both").evaluate(tuned)
    group = harness(tuned, tokenizer, ["both"], folder)["groups"]["both"]
    score = found.scores["both"]
    assert (score.value, score.stderr) == (group["acc,none"], group["acc_stderr,none"])
    assert score.items == len(found.items) == 18
    assert {i.member for i in found.items} == ({None} if weight_by_size else {"few", "other"})
    mean = mean_over_members((item.member, item.score) for item in found.items)
    assert mean == pytest.approx(score.value)


def test_each_filter_has_its_own_score_and_items(
    tuned: Any, tokenizer: Any, folder: Path, asking: Callable[..., Evaluator]
) -> None:
    first = {"function": "take_first"}
    never = {"function": "regex", "regex_pattern": "(unspoken)"}
    filters = [{"name": "plain", "filter": [first]}, {"name": "never", "filter": [never, first]}]
    write_task(folder, "filtered", **WRITTEN, filter_list=filters)
    expected = harness(tuned, tokenizer, ["filtered"], folder)["results"]["filtered"]
    for name in ("plain", "never"):
        found = asking({"task": "filtered", "filter": name}).evaluate(tuned)
        assert found.scores["filtered"].value == expected[f"exact_match,{name}"]
        assert found.scores["filtered"].items == len(found.items) == 12
        assert {item.filter for item in found.items} == {name}
    assert expected["exact_match,plain"] > expected["exact_match,never"]
    assert len(found.items) < LIMIT
