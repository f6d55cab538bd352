"""The evaluator's numbers are lm-evaluation-harness's own."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import peft
import pytest
import torch
import yaml
from evaluated import evaluated_base
from faults import faults
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from trainables.config import EvalSuite
from trainables.errors import UserError, named
from trainables.evaluation.base_scores import Base
from trainables.evaluation.evaluator import Evaluation, Evaluator
from trainables.evaluation.forgetting import mean_over_members
from trainables.evaluation.outcomes import answer_text, is_number
from trainables.evaluation.task_errors import absent_names
from trainables.evaluation.task_loading import documents_digest, load_tasks
from trainables.models.loading import load_tokenizer
from trainables.storage.locations import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig

    Asking = Callable[..., Evaluator]


EMBEDDED = "package://trainables/embedded/eval_tasks"
LIMIT = 20
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def perturbed(model: Any, scale: float, only: str = "") -> Any:
    """Trained somewhere else, so that some answers are right and some are wrong."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(params=["base", "lora", "full"])
def model(request: pytest.FixtureRequest, base_model: Any) -> Any:
    if request.param == "full":
        return perturbed(base_model, 0.05)
    if request.param == "lora":
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        return perturbed(peft.get_peft_model(base_model, config).eval(), 0.05, only="lora_B")
    return base_model


@pytest.fixture
def tuned(base_model: Any) -> Any:
    return perturbed(base_model, 0.05)


def suite(**fields: Any) -> EvalSuite:
    return EvalSuite(**({"task_dirs": (EMBEDDED,), "limit": LIMIT, "batch_size": 16} | fields))


def harness(model: Any, tokenizer: Any, tasks: list[str], folder: Any, **options: Any) -> Any:
    """What the harness's documented entry point says."""
    return simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, softmax_dtype="float32"),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        **({"limit": LIMIT} | options),
    )


def accuracy(evaluation: Evaluation, label: str) -> tuple[float, float | None]:
    score = evaluation.scores[label]
    return score.value, score.stderr


def outcomes(evaluation: Evaluation, label: str) -> list[tuple[str, str, float]]:
    return [(i.doc_hash, i.prompt, i.score) for i in evaluation.items if i.task == label]


def samples(result: Any, task: str, metric: str = "acc") -> list[tuple[str, str, float]]:
    return [
        (s["doc_hash"], s["arguments"][0][0], float(s[metric])) for s in result["samples"][task]
    ]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_items(file: Path, offset: int, count: int = 12) -> None:
    items = []
    for index in range(count):
        a, b, c = (
            (offset + index) % 20,
            (offset + 3 * index + 7) % 20,
            (offset + 5 * index + 1) % 20,
        )
        choices = list(dict.fromkeys(str(n) for n in (a, b, c)))
        answer = choices.index(str(max(map(int, choices))))
        question = f"max {' '.join(choices)} ="
        items.append({"question": question, "choices": choices, "answer": answer})
    write_rows(file, items)


def write_task(folder: Path, name: str, test: Path | None = None, **fields: Any) -> None:
    """On the rows of `test.jsonl`, unless others are named."""
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump(
            {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(test or folder / "test.jsonl")}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "question",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc"}],
            }
            | fields
        )
    )


def write_coded_task(folder: Path, name: str, code: str, uses: str, **fields: Any) -> None:
    """One that uses its own code, `NAME.py`, as a line such as `class: !function NAME.Own` says."""
    (folder / f"{name}.py").write_text(code)
    write_task(folder, name, **fields)
    file = folder / f"{name}.yaml"
    file.write_text(f"{file.read_text()}{uses}\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's own task folder: `few` has a training split to draw examples from."""
    write_items(tmp_path / "train.jsonl", offset=0)
    write_items(tmp_path / "test.jsonl", offset=40)
    files = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    write_task(
        tmp_path,
        "few",
        tmp_path / "test.jsonl",
        dataset_kwargs={"data_files": files},
        training_split="train",
        fewshot_split="train",
    )
    return tmp_path


@pytest.fixture
def asking(folder: Path, tokenizer: Any) -> Asking:
    """An evaluator of tasks of the folder."""

    def asking(*in_domain: Any, **fields: Any) -> Evaluator:
        asked = {"task_dirs": (str(folder),), "in_domain": in_domain} | fields
        return Evaluator(suite(**asked), tokenizer)

    return asking


def test_scores_and_items_equal_the_harness_for_every_kind_of_model(
    model: Any, tokenizer: Any
) -> None:
    tasks = ["target_relay", "list_max", "recall_capitals", "target_longer"]
    evaluation = Evaluator(
        suite(in_domain=tasks[:1], retention=tasks[1:3], ood=tasks[3:]), tokenizer
    ).evaluate(model)
    expected = harness(model, tokenizer, tasks, resolve(EMBEDDED))
    for task in tasks:
        wanted = expected["results"][task]
        assert accuracy(evaluation, task) == (wanted["acc,none"], wanted["acc_stderr,none"])
        assert outcomes(evaluation, task) == samples(expected, task)
        assert evaluation.scores[task].items == LIMIT
    assert (
        evaluation.metrics["retention/list_max/acc"] == expected["results"]["list_max"]["acc,none"]
    )


def test_scores_in_bfloat16_equal_the_harness(tuned: Any, tokenizer: Any) -> None:
    task, model = "list_max", tuned.to(torch.bfloat16)
    evaluation = Evaluator(suite(in_domain=[task]), tokenizer).evaluate(model)
    expected = harness(model, tokenizer, [task], resolve(EMBEDDED))
    assert outcomes(evaluation, task) == samples(expected, task)
    assert 0 < accuracy(evaluation, task)[0] < 1


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_bundled_questions_are_asked_as_the_harness_does(
    metric: str, tuned: Any, tokenizer: Any, folder: Path
) -> None:
    bundled, files = "package://tune/sweeps/tasks", {"test": str(folder / "test.jsonl")}
    asked = {"task": "question_answering", "name": "mine", "data_files": files, "metric": metric}
    evaluation = Evaluator(suite(task_dirs=(bundled,), in_domain=[asked]), tokenizer).evaluate(
        tuned
    )
    metrics = [{"metric": "acc"}, {"metric": "acc_norm"}]
    text = "Question: {{question}}\nAnswer:"
    write_task(folder, "mine", doc_to_text=text, metric_list=metrics)
    expected = harness(tuned, tokenizer, ["mine"], folder)
    assert outcomes(evaluation, "mine") == samples(expected, "mine", metric)
    assert accuracy(evaluation, "mine")[0] == expected["results"]["mine"][f"{metric},none"]
    assert evaluation.scores["mine"].items == 12
    assert evaluation.items[0].prompt.startswith("Question: max ")


def test_generated_answers_equal_the_harness_for_every_kind_of_model(
    model: Any, tokenizer: Any
) -> None:
    task = "target_relay_generate"
    evaluation = Evaluator(suite(in_domain=[task]), tokenizer).evaluate(model)
    expected = harness(model, tokenizer, [task], resolve(EMBEDDED))
    wanted = expected["results"][task]
    assert accuracy(evaluation, task) == (
        wanted["exact_match,none"],
        wanted["exact_match_stderr,none"],
    )
    assert outcomes(evaluation, task) == samples(expected, task, "exact_match")
    answers = [str(sample["filtered_resps"][0]) for sample in expected["samples"][task]]
    assert [item.answer for item in evaluation.items] == answers
    assert evaluation.scores[task].chance == 0


def test_models_that_are_compared_do_differ(base_model: Any, tokenizer: Any) -> None:
    evaluator = Evaluator(suite(in_domain=["list_max"]), tokenizer)
    before = evaluator.evaluate(base_model)
    after = evaluator.evaluate(perturbed(base_model, 0.05))
    assert outcomes(before, "list_max") != outcomes(after, "list_max")
    assert 0 < after.scores["list_max"].value < 1


@pytest.mark.parametrize("where", ["suite", "task"])
def test_few_shot_examples_are_the_harness_s(
    where: str, tuned: Any, tokenizer: Any, folder: Path, asking: Asking
) -> None:
    fields: dict[str, Any] = (
        {"in_domain": ["few"], "num_fewshot": 2}
        if where == "suite"
        else {"in_domain": [{"task": "few", "num_fewshot": 2}]}
    )
    evaluator = asking(**fields)
    evaluator.evaluate(tuned)  # the next one draws the same
    evaluation = evaluator.evaluate(tuned)
    expected = harness(tuned, tokenizer, ["few"], folder, num_fewshot=2)
    assert outcomes(evaluation, "few") == samples(expected, "few")
    assert all(item.prompt.count("max") == 3 for item in evaluation.items)
    assert accuracy(evaluation, "few")[0] == expected["results"]["few"]["acc,none"]


def test_a_task_that_says_zero_shots_itself_gets_none(
    tuned: Any, tokenizer: Any, folder: Path, asking: Asking
) -> None:
    write_task(folder, "zero", num_fewshot=0)
    evaluation = asking("zero", num_fewshot=2).evaluate(tuned)
    expected = harness(tuned, tokenizer, ["zero"], folder, num_fewshot=2)
    assert outcomes(evaluation, "zero") == samples(expected, "zero")
    assert all(item.prompt.count("max") == 1 for item in evaluation.items)


def test_examples_for_a_task_that_takes_none_are_refused(folder: Path, asking: Asking) -> None:
    write_task(folder, "zero", num_fewshot=0)
    with pytest.raises(UserError, match=r"never given examples .*got num_fewshot 2"):
        asking({"task": "zero", "num_fewshot": 2})


def test_more_examples_than_there_are_is_a_fault_before_any_model_runs(
    tuned: Any, tokenizer: Any, folder: Path
) -> None:
    asked = {"task_dirs": (str(folder),), "in_domain": ["few"], "limit": 1}
    evaluation = Evaluator(suite(**asked, num_fewshot=12), tokenizer).evaluate(tuned)
    assert evaluation.items[0].prompt.count("max") == 13
    with pytest.raises(UserError, match="num_fewshot must be at most its 12 examples, got 13"):
        Evaluator(suite(**asked, num_fewshot=13), tokenizer)


@pytest.mark.parametrize(
    "drawn",
    [
        "docs.map(lambda doc: {'choices': random.sample(doc['choices'], 2)})",
        "docs.select(random.sample(range(len(docs)), 5))",  # at each look
    ],
)
def test_a_task_that_draws_as_it_is_loaded_asks_alike_in_every_process(
    drawn: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asking: Asking
) -> None:
    """As GPQA, and as the harness has it: it seeds before it loads."""
    code = f"import random\n\n\ndef process(docs):\n    return {drawn}\n"
    write_coded_task(folder, "shuffled", code, "process_docs: !function shuffled.process")

    def elsewhere(node: str) -> None:  # where none of its data are cached yet
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / node)

    elsewhere("harness")
    random.seed(0)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = manager.load(["shuffled"])["tasks"]["shuffled"]
    expected = {"shuffled": documents_digest(task, None)}
    for seed in (1, 2):
        elsewhere(f"node {seed}")
        random.seed(seed)
        state = random.getstate()
        assert asking("shuffled").describe()[0]["documents"] == expected
        assert random.getstate() == state


@pytest.mark.parametrize(("file", "shots"), [("test.jsonl", 0), ("train.jsonl", 2)])
def test_what_decides_the_numbers_knows_the_documents_by_their_content(
    folder: Path, file: str, shots: int, asking: Asking
) -> None:
    """Not by their files' names alone: a base evaluated before they changed is another."""
    asked = {"task": "few", "num_fewshot": shots}
    before, again = (asking(asked).describe() for _ in range(2))
    of_base = asking(asked).rows
    rows = (folder / file).read_text().splitlines()
    changed = json.loads(rows[0])
    changed["answer"] = 1 - changed["answer"]
    (folder / file).write_text("\n".join([json.dumps(changed), *rows[1:]]))
    assert before == again != asking(asked).describe()
    (fault,) = faults(asking(asked).check_rows, of_base)
    assert fault.rule == "the rows of task few have changed since the base was asked"
    asking(asked).check_rows({})  # an earlier version recorded none


def test_a_task_that_asks_otherwise_in_each_process_still_reads_the_same(
    folder: Path, asking: Asking
) -> None:
    """As GPQA with examples, which shuffles choices anew wherever nothing is cached."""
    code = (
        "import os\n\n\ndef process(docs):\n"
        "    return docs.add_column('drawn', [os.urandom(4).hex() for _ in docs])\n"
    )
    write_coded_task(folder, "shuffled", code, "process_docs: !function shuffled.process")
    one, other = asking("shuffled"), asking("shuffled")
    assert one.describe() != other.describe()
    other.check_rows(one.rows)


def test_a_task_s_own_limit_wins_over_the_suite_s(tuned: Any, tokenizer: Any) -> None:
    wanted = suite(in_domain=["target_relay"], retention=[{"task": "list_max", "limit": 7}])
    evaluation = Evaluator(wanted, tokenizer).evaluate(tuned)
    expected = harness(tuned, tokenizer, ["list_max"], resolve(EMBEDDED), limit=7)
    assert outcomes(evaluation, "list_max") == samples(expected, "list_max")
    assert evaluation.scores["list_max"].items == 7
    assert evaluation.scores["target_relay"].items == LIMIT


def test_one_task_stands_for_several_files_under_several_names(
    tuned: Any, tokenizer: Any, folder: Path
) -> None:
    write_items(folder / "near.jsonl", offset=2)
    write_items(folder / "far.jsonl", offset=11)
    names = ("near", "far")
    wanted = suite(
        task_dirs=(str(folder),),
        in_domain=["few"],
        ood=[
            {
                "task": "few",
                "name": name,
                "data_files": dict.fromkeys(split, f"{folder}/{name}.jsonl"),
            }
            for name in names
            for split in [("train", "test")]
        ],
    )
    evaluation = Evaluator(wanted, tokenizer).evaluate(tuned)
    for name in names:
        write_task(folder, f"plain_{name}", folder / f"{name}.jsonl")
    expected = harness(tuned, tokenizer, [f"plain_{name}" for name in names], folder)
    for name in names:
        assert outcomes(evaluation, name) == samples(expected, f"plain_{name}")
        assert f"ood/{name}/acc" in evaluation.metrics
    assert outcomes(evaluation, "near") != outcomes(evaluation, "far")


def write_group(folder: Path, name: str, **fields: Any) -> None:
    write_items(folder / "other.jsonl", offset=9, count=6)
    write_task(folder, "other", folder / "other.jsonl")
    group = {"group": name, "task": ["few", "other"]} | fields
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_a_group_s_score_is_the_harness_s_aggregate(
    tuned: Any, tokenizer: Any, folder: Path, weight_by_size: bool, asking: Asking
) -> None:
    aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": weight_by_size}]
    write_group(folder, "both", aggregate_metric_list=aggregate)
    evaluation = asking("both").evaluate(tuned)
    expected = harness(tuned, tokenizer, ["both"], folder)
    group = expected["groups"]["both"]
    assert accuracy(evaluation, "both") == (group["acc,none"], group["acc_stderr,none"])
    members = samples(expected, "few") + samples(expected, "other")
    assert outcomes(evaluation, "both") == members
    assert evaluation.scores["both"].items == len(members) == 18
    own = [item for item in evaluation.items if item.task == "both"]
    assert {item.member for item in own} == ({None} if weight_by_size else {"few", "other"})
    mean = mean_over_members((item.member, item.score) for item in own)
    assert mean == pytest.approx(evaluation.scores["both"].value)


def test_how_a_group_weighs_its_tasks_is_part_of_what_a_base_is_cached_by(
    folder: Path, asking: Asking
) -> None:
    """Else a base by the old weights would be compared with trials by the new ones."""
    described = []
    for weight_by_size in (True, False):
        aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": weight_by_size}]
        write_group(folder, "both", aggregate_metric_list=aggregate)
        described.append(asking("both").describe())
    by_size, equally = described
    assert by_size != equally


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes", "acc_mutual_info"])
def test_the_answer_that_is_shown_is_the_one_that_was_scored(
    tuned: Any, folder: Path, metric: str, asking: Asking
) -> None:
    """Their choices are of one to three characters, of which longer ones have more bytes still."""
    words = ["9", "12", "\u00e4\u00f6\u00fc"]
    rows = [
        {"question": f"max {n} {n + 3} =", "choices": words, "answer": n % 3} for n in range(16)
    ]
    file = folder / "unlike.jsonl"
    write_rows(file, rows)
    write_task(folder, "unlike", file, metric_list=[{"metric": metric}])
    items = asking({"task": "unlike", "metric": metric}).evaluate(tuned).items
    assert [item.answer == item.target for item in items] == [item.score == 1.0 for item in items]
    assert {item.score for item in items} == {0.0, 1.0}
    assert {item.target for item in items} == set(words)


@pytest.mark.parametrize("metric", ["acc_norm", "acc_bytes"])
def test_an_empty_choice_is_not_the_answer_by_length(metric: str) -> None:
    task = SimpleNamespace(
        OUTPUT_TYPE="multiple_choice", multiple_input=0, doc_to_choice=lambda doc: doc["choices"]
    )
    sample = {
        "doc": {"choices": ["", "9"]},
        "metrics": [metric],
        "arguments": [("max 3 9 =", " "), ("max 3 9 =", " 9")],
        "filtered_resps": [(-0.5, False), (-2.0, False)],
    }
    assert answer_text(task, sample, metric) == "9"
    assert answer_text(task, sample, "acc") == ""


def test_where_the_questions_differ_and_not_the_answers_the_chosen_question_is_shown(
    tuned: Any, folder: Path, asking: Asking
) -> None:
    """As in Winogrande: each choice is put into the question, which then goes on the same."""
    rows = [
        {"question": ["max 3 8 =", "max 9 2 ="], "answer": n % 2, "rest": f" {n}"} for n in range(8)
    ]
    file = folder / "inputs.jsonl"
    write_rows(file, rows)
    write_task(
        folder,
        "inputs",
        file,
        doc_to_text="answer",
        doc_to_choice="question",
        doc_to_target="rest",
    )
    items = asking("inputs").evaluate(tuned).items
    assert {item.target for item in items} == set(rows[0]["question"])
    assert [item.answer == item.target for item in items] == [item.score == 1.0 for item in items]


def test_a_group_without_an_aggregate_is_a_fault_before_any_model_runs(
    folder: Path, asking: Asking
) -> None:
    write_group(folder, "bare")
    with pytest.raises(UserError, match=r"bare.*aggregate_metric_list"):
        asking("bare")


def test_a_group_cannot_be_renamed(folder: Path, asking: Asking) -> None:
    write_group(folder, "both", aggregate_metric_list=[{"metric": "acc"}])
    task = {"task": "both", "name": "mine"}
    with pytest.raises(UserError, match=r"task mine \(both\) cannot be loaded: .*group"):
        asking(task)


def test_a_tag_is_a_fault_that_names_its_tasks(folder: Path, asking: Asking) -> None:
    write_task(folder, "one", tag="mine")
    write_task(folder, "two", tag="mine")
    with pytest.raises(UserError, match=r"mine.*one, two"):
        asking("mine")


def test_documents_are_counted_once_whatever_the_number_of_filters(
    tuned: Any, tokenizer: Any, folder: Path, asking: Asking
) -> None:
    first = {"function": "take_first"}
    never = {"function": "regex", "regex_pattern": "(unspoken)"}
    write_task(
        folder,
        "filtered",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[answer]}}",
        generation_kwargs={"until": ["\n"], "do_sample": False, "max_gen_toks": 1},
        metric_list=[{"metric": "exact_match"}],
        filter_list=[
            {"name": "plain", "filter": [first]},
            {"name": "never", "filter": [never, first]},
        ],
    )
    scores = {}
    for name in ("plain", "never"):
        task = {"task": "filtered", "filter": name}
        evaluation = asking(task).evaluate(tuned)
        expected = harness(tuned, tokenizer, ["filtered"], folder)["results"]["filtered"]
        scores[name] = evaluation.scores["filtered"]
        assert scores[name].value == expected[f"exact_match,{name}"]
        assert scores[name].items == len(evaluation.items) == 12
        assert {item.filter for item in evaluation.items} == {name}
    assert scores["plain"].value > scores["never"].value == 0


def test_a_metric_with_unconditional_requests_does_not_change_the_chance(
    tuned: Any, folder: Path, asking: Asking
) -> None:
    write_task(
        folder,
        "mutual",
        metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}],
    )
    plain = asking("few")
    mutual = asking("mutual")
    wanted, got = plain.evaluate(tuned), mutual.evaluate(tuned)
    assert got.scores["mutual"].chance == wanted.scores["few"].chance
    assert got.scores["mutual"].choices == wanted.scores["few"].choices
    assert [i.answer for i in got.items] == [i.answer for i in wanted.items]


@pytest.mark.parametrize("answer", [[0, 1, 1], [0, 1, -100], [0, 1, 4, 5, 6, 7, 8]])
def test_a_guess_is_right_as_often_as_a_listed_answer_is(
    answer: list[int], tuned: Any, folder: Path, asking: Asking
) -> None:
    rows = [
        {"question": f"max {n} {n + 1} =", "choices": list("9876"), "answer": answer}
        for n in range(8)
    ]
    file = folder / "several.jsonl"
    write_rows(file, rows)
    write_task(folder, "several", file)
    score = asking("several").evaluate(tuned).scores["several"]
    assert score.chance == 0.5
    assert score.choices == 2


def test_items_with_other_numbers_of_choices_have_the_one_that_accounts_for_guesses(
    tuned: Any, folder: Path, asking: Asking
) -> None:
    rows = [
        {"question": f"max {n} =", "choices": list("9876"[: 2 + 2 * (n % 2)]), "answer": 0}
        for n in range(8)
    ]
    file = folder / "unequal.jsonl"
    write_rows(file, rows)
    write_task(folder, "unequal", file)
    score = asking("unequal").evaluate(tuned).scores["unequal"]
    assert score.chance == 0.375
    assert score.choices == pytest.approx(1 + 0.625**2 / 0.21875)


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_of_a_group_the_tasks_that_do_not_give_its_metric_count_for_nothing(
    weight_by_size: bool, tuned: Any, folder: Path, asking: Asking
) -> None:
    """Where one member lists answers and another's are written, nobody guesses at the latter."""
    written = {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "9"}
    written |= {"generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 1}}
    metrics = [{"metric": "exact_match"}]
    write_task(folder, "written", **written, metric_list=metrics)
    aggregates = [{"metric": name, "weight_by_size": weight_by_size} for name in ("acc", "em")]
    mixed = {"task": ["few", "written"], "aggregate_metric_list": aggregates}
    write_group(folder, "mixed", **mixed)
    with_answers(folder / "test.jsonl", lambda row: -1, first=7)  # and most of both
    alone, score = (asking(name).evaluate(tuned) for name in ("few", "mixed"))
    assert len(alone.items) == 12
    fields = {"items", "chance", "choices", "value", "metric"}
    assert score.scores["mixed"].model_dump(include=fields) == alone.scores["few"].model_dump(
        include=fields
    )
    assert "the right answer of 5 of 12 documents" in score.warnings[0]


@pytest.mark.parametrize(("metric", "chance"), [("exact_match", 0.0), ("mcc", 0.0), ("f1", None)])
def test_a_guess_among_choices_is_nothing_by_what_takes_none_of_them(
    metric: str, chance: float | None, tuned: Any, folder: Path, asking: Asking
) -> None:
    """Of a multiple choice the harness matches the right one with what the model would write."""
    write_task(folder, "listed", metric_list=[{"metric": metric}])
    score = asking("listed").evaluate(tuned).scores["listed"]
    assert (score.metric, score.chance, score.choices) == (metric, chance, None)


def test_of_a_task_that_scores_itself_no_chance_level_is_known(
    load: Callable[..., SweepConfig], folder: Path
) -> None:
    """Its number may be no share of right choices at all, such as the probability of some."""
    with_results(folder, "mass", "{'acc': 0.3 if doc['answer'] else 0.2}")
    wanted = suite(task_dirs=(str(folder),), in_domain=["few"], retention=["mass"], kl_prompts=0)
    config = load()
    record = Base.load(evaluated_base(config, folder / "cache", eval=wanted)).record
    assert record.scores["mass"].chance is record.scores["mass"].choices is None
    assert record.metrics["forgetting/mass"] == 0
    assert not [key for key in record.metrics if "ratio" in key or "adjusted" in key]
    assert not [warning for warning in record.warnings if "mass" in warning]


def test_chat_templates_are_applied_as_the_harness_does(
    tuned: Any, sweep_config: SweepConfig, folder: Path
) -> None:
    tokenizer = load_tokenizer(sweep_config.model)
    tokenizer.chat_template = CHAT
    fields = {"task_dirs": (str(folder),), "in_domain": ["few"], "num_fewshot": 1}
    evaluation = Evaluator(suite(chat_template=True, **fields), tokenizer).evaluate(tuned)
    expected = harness(tuned, tokenizer, ["few"], folder, num_fewshot=1, apply_chat_template=True)
    assert outcomes(evaluation, "few") == samples(expected, "few")
    assert evaluation.items[0].prompt.startswith("user : max")
    assert evaluation.items[0].prompt.count("assistant :") == 2


def test_written_answers_to_questions_of_one_s_own_equal_the_harness(
    tuned: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Half of them made right from what the model says, but for case and surrounding space."""
    is_word = [tokenizer.decode([token]).strip().isalpha() for token in range(len(tokenizer))]
    bias = 100.0 * torch.tensor(is_word)  # else it says nothing to questions of another form
    tuned.lm_head.bias = torch.nn.Parameter(bias)
    bundled, file = "package://tune/sweeps/tasks", tmp_path / "test.jsonl"

    def write(answers: list[str]) -> None:
        rows = [
            {"question": f"max {n} {n + 3} =", "answer": text} for n, text in enumerate(answers)
        ]
        write_rows(file, rows)

    def evaluate() -> Evaluation:
        task = {"task": "answer_generation", "name": "own", "data_files": {"test": str(file)}}
        return Evaluator(suite(task_dirs=(bundled,), in_domain=[task]), tokenizer).evaluate(tuned)

    write(["?"] * 8)
    said = [str(item.answer) for item in evaluate().items]
    assert all(text != text.upper() for text in said)
    write([f" {text.upper()}  " if n % 2 else f"{text}?" for n, text in enumerate(said)])
    evaluation = evaluate()
    assert evaluation.metrics["in_domain/own/exact_match"] == 0.5
    spec = yaml.safe_load((Path(resolve(bundled)) / "answer_generation.yaml").read_text())
    spec |= {"task": "own", "dataset_kwargs": {"data_files": {"test": str(file)}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec))
    expected = harness(tuned, tokenizer, ["own"], tmp_path)
    wanted = expected["results"]["own"]
    key = "exact_match"
    assert accuracy(evaluation, "own") == (wanted[f"{key},none"], wanted[f"{key}_stderr,none"])
    assert outcomes(evaluation, "own") == samples(expected, "own", key)


@pytest.mark.parametrize("in_chats", [True, False])
def test_a_system_instruction_is_given_as_the_harness_does(
    in_chats: bool, tuned: Any, sweep_config: SweepConfig, folder: Path, asking: Asking
) -> None:
    tokenizer = load_tokenizer(sweep_config.model)
    tokenizer.chat_template = CHAT
    fields = {"task_dirs": (str(folder),), "in_domain": ["few"], "num_fewshot": 1}
    told = {"system_instruction": "take the max 7"}
    plain = Evaluator(suite(chat_template=in_chats, **fields), tokenizer)
    asking = Evaluator(suite(chat_template=in_chats, **fields, **told), tokenizer)
    evaluation = asking.evaluate(tuned)
    expected = harness(
        tuned,
        tokenizer,
        ["few"],
        folder,
        num_fewshot=1,
        apply_chat_template=in_chats,
        fewshot_as_multiturn=in_chats,
        **told,
    )
    assert outcomes(evaluation, "few") == samples(expected, "few")
    wanted = expected["results"]["few"]
    assert accuracy(evaluation, "few") == (wanted["acc,none"], wanted["acc_stderr,none"])
    begins = "system : take the max 7" if in_chats else "take the max 7"
    assert all(item.prompt.startswith(begins) for item in evaluation.items)
    assert asking.describe() != plain.describe()


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_training_mode_and_random_state_alone(
    training: bool, base_model: Any, tokenizer: Any, folder: Path
) -> None:
    (folder / "dice.py").write_text(
        "import random\n\n\ndef question(doc):\n"
        "    return doc['question'] if random.random() < 0.5 else 'max 1 2 ='\n"
    )
    write_task(folder, "dice")
    text = (folder / "dice.yaml").read_text()
    (folder / "dice.yaml").write_text(
        text.replace("doc_to_text: question", "doc_to_text: !function dice.question")
    )
    wanted = suite(
        task_dirs=(EMBEDDED, str(folder)),
        in_domain=["target_relay_generate"],
        retention=[{"task": "few", "num_fewshot": 1}, "dice"],
    )
    evaluator = Evaluator(wanted, tokenizer)
    base_model.train(training)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = evaluator.evaluate(base_model)
    assert base_model.training is training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    random.seed(99)
    assert evaluator.evaluate(base_model) == first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": 9}, "IndexError: its right answer is choice 9 of 0 to 1"),
        ({"choices": None}, "TypeError: "),
        ({"choices": []}, "ValueError: "),
        ({"answer": None}, "TypeError: "),
    ],
)
def test_an_error_names_its_task_and_document(
    change: dict[str, Any], told: str, base_model: Any, tokenizer: Any, folder: Path
) -> None:
    file = folder / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3] |= change
    write_rows(file, rows)
    bundled, files = "package://tune/sweeps/tasks", {"test": str(file)}
    asked = {"task": "question_answering", "name": "mine", "data_files": files}
    with pytest.raises((IndexError, TypeError, ValueError)) as caught:
        Evaluator(suite(task_dirs=(bundled,), in_domain=[asked]), tokenizer).evaluate(base_model)
    document, task = caught.value.__notes__
    assert document.startswith("document 4 {'answer': ")
    assert task == "task mine"
    assert named(caught.value).startswith(told)


def test_a_choice_that_is_too_long_for_the_model_is_told(
    base_model: Any, folder: Path, asking: Asking
) -> None:
    rows = [{"question": "max 4 2 =", "choices": ["4", "2 " * 99], "answer": 0}]
    (folder / "test.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match=r"got 99 after \d+: \('max 4 2 =', ' 2 2 2"):
        asking("few").evaluate(base_model)


def with_answers(file: Path, change: Callable[[dict[str, Any]], Any], first: int = 0) -> None:
    """Another right answer to the questions from the first one on."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[first:]:
        row["answer"] = change(row)
    write_rows(file, rows)


def own_questions(file: Path) -> EvalSuite:
    asked = {"task": "question_answering", "name": "mine", "data_files": {"test": str(file)}}
    return suite(task_dirs=("package://tune/sweeps/tasks",), in_domain=[asked])


@pytest.mark.parametrize("answer", ["B", "007", "", -1, [9]])
def test_right_answers_that_are_no_choices_are_refused(
    answer: Any, base_model: Any, tokenizer: Any, folder: Path
) -> None:
    """The harness gives 0 for them, and only logs it."""
    with_answers(folder / "test.jsonl", lambda row: answer)
    with pytest.raises(UserError, match="task mine: the right answer of 12 of 12 docu") as caught:
        Evaluator(own_questions(folder / "test.jsonl"), tokenizer).evaluate(base_model)
    (fault,) = caught.value.faults
    assert f"such as {answer!r} of document 1 {{'answer': " in fault.rule
    assert fault.field == "eval.in_domain"


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["choices"][row["answer"]],
        lambda row: [row["answer"]],
        lambda row: [row["answer"], -100],
    ],
    ids=["text", "several", "padded"],
)
def test_a_right_answer_is_a_choice_by_its_text_or_one_of_several(
    change: Callable[[dict[str, Any]], Any], tuned: Any, tokenizer: Any, folder: Path
) -> None:
    asked = own_questions(folder / "test.jsonl")
    by_index = Evaluator(asked, tokenizer).evaluate(tuned)
    with_answers(folder / "test.jsonl", change)
    evaluation = Evaluator(asked, tokenizer).evaluate(tuned)
    assert [item.score for item in evaluation.items] == [item.score for item in by_index.items]
    assert evaluation.warnings == []


@pytest.mark.parametrize("answer", ["dearth, wind, & fire", -1])
def test_a_few_right_answers_that_are_no_choices_are_told_of(
    answer: Any, tuned: Any, tokenizer: Any, folder: Path
) -> None:
    """As of BIG-bench Hard, whose numbers stay the harness's."""
    file = folder / "test.jsonl"
    with_answers(file, lambda row: row["choices"][row["answer"]] if answer != -1 else row["answer"])
    with_answers(file, lambda row: answer, first=6)
    evaluation = Evaluator(own_questions(file), tokenizer).evaluate(tuned)
    (warning,) = evaluation.warnings
    assert warning.startswith("task mine: the right answer of 6 of 12 documents is none of ")
    assert f"such as {answer!r} of document 7 " in warning
    assert [item.target for item in evaluation.items[6:]] == [str(answer)] * 6
    text = "Question: {{question}}\nAnswer:"
    write_task(folder, "mine", file, doc_to_text=text)
    expected = harness(tuned, tokenizer, ["mine"], folder)
    assert outcomes(evaluation, "mine") == samples(expected, "mine")


OWN_TASK = """
from lm_eval.api.task import ConfigurableTask

class Own(ConfigurableTask):
    def __init__(self, config):
        super().__init__(config={key: config[key] for key in config if key != "class"})

    def process_results(self, doc, likelihoods):
        return {"acc": 1.0}

def results(doc, likelihoods):
    return {"acc": 1.0}
"""


@pytest.mark.parametrize(
    "by", ["process_results: !function own.results", "class: !function own.Own"]
)
@pytest.mark.parametrize("answer", [9, -1])
def test_a_task_that_scores_itself_may_name_what_is_no_choice(
    answer: int, by: str, base_model: Any, folder: Path, asking: Asking
) -> None:
    with_answers(folder / "test.jsonl", lambda row: answer, first=1)
    write_coded_task(folder, "own", OWN_TASK, by)
    assert asking("own").evaluate(base_model).warnings == []


def test_a_base_far_below_chance_is_not_said_to_be_at_it(
    load: Callable[..., SweepConfig], base_model: Any, tokenizer: Any, folder: Path
) -> None:
    """It does not guess: the answers or the prompt are at fault."""
    file, config = folder / "test.jsonl", load()
    said = Evaluator(own_questions(file), tokenizer).evaluate(base_model).items
    answers = iter([item.answer for item in said])
    with_answers(file, lambda row: (row["choices"].index(next(answers)) + 1) % len(row["choices"]))
    asked = own_questions(file).in_domain
    wanted = suite(
        task_dirs=(EMBEDDED, "package://tune/sweeps/tasks"),
        in_domain=["list_last"],
        retention=asked,
        kl_prompts=0,
    )
    base = evaluated_base(config, folder / "cache", eval=wanted)
    (warning,) = Base.load(base).record.warnings
    assert "mine: the base scores 0.000, below chance (0.3" in warning
    assert "look at its answers and prompt" in warning


def test_all_faulty_tasks_are_reported_at_once_with_the_nearest_name(
    tokenizer: Any, folder: Path
) -> None:
    write_task(folder, "broken", folder / "absent.jsonl")
    wanted = suite(
        task_dirs=(EMBEDDED, str(folder)),
        in_domain=["target_rellay"],
        retention=["list_max", "sort_numbrs"],
        ood=["broken"],
    )
    with pytest.raises(UserError) as caught:
        Evaluator(wanted, tokenizer)
    faults = {fault.field: str(fault) for fault in caught.value.faults}
    assert "target_relay?" in faults["eval.in_domain"]
    assert "sort_numbers?" in faults["eval.retention"]
    assert "broken cannot be loaded: FileNotFoundError: " in faults["eval.ood"]
    assert f"({folder / 'broken.yaml'})" in faults["eval.ood"]
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("doc_to_text: a: b", "ScannerError: mapping values are not allowed"),
        ("metadata: {since: 2024-02-30}", "ValueError: day is out of range for month"),
        ("include: absent", "FileNotFoundError: "),
    ],
)
def test_a_task_whose_file_cannot_be_read_is_not_said_to_be_absent_alone(
    line: str, told: str, tokenizer: Any, folder: Path
) -> None:
    write_task(folder, "own")
    file = folder / "own.yaml"
    count = len(file.read_text().splitlines())
    file.write_text(f"{file.read_text()}\n{line}\n")
    (fault,) = faults(
        Evaluator, suite(task_dirs=(EMBEDDED, str(folder)), in_domain=["own"]), tokenizer
    )
    assert f"or the harness, and a file that names it cannot be read: {told}" in fault.rule
    assert fault.location in (str(file), f"{file}:{count + 2}")


def test_another_file_that_cannot_be_read_hides_no_misspelt_name(
    tokenizer: Any, folder: Path
) -> None:
    (folder / "others.yaml").write_text("task: target_rela: y\n")
    with pytest.raises(UserError, match=r"did you mean target_relay\?"):
        Evaluator(suite(task_dirs=(EMBEDDED, str(folder)), in_domain=["target_rel"]), tokenizer)


ROW = {"question": "max 3 8 =", "choices": ["3", "8"], "answer": 1}


@pytest.mark.parametrize(
    ("text", "split", "told"),
    [
        ("", "test", "its data hold no rows"),
        (json.dumps(ROW), "validation", "KeyError: 'test'"),
        (  # the latter of older versions of the reader
            "question,answer\nmax,8",
            "test",
            "ArrowInvalid: JSON parse error: Invalid value|ValueError: Expected object or value",
        ),
        (json.dumps(ROW | {"answer": 5}), "test", "IndexError: list index out of range"),
        (
            json.dumps({"choices": ["3"], "answer": 0}),
            "test",
            "its doc_to_text: UndefinedError: 'question' is undefined",
        ),
        (json.dumps({"question": "max"}), "test", "its doc_to_choice: ValueError: malformed node"),
    ],
)
def test_a_task_that_cannot_be_loaded_names_its_file_and_the_cause(
    text: str, split: str, told: str, tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    asked = {"task": "question_answering", "name": "mine", "data_files": {split: str(file)}}
    (fault,) = faults(
        Evaluator, suite(task_dirs=("package://tune/sweeps/tasks",), in_domain=[asked]), tokenizer
    )
    rule = rf"task mine \(question_answering\) cannot be loaded: ({told})"
    assert re.match(rule, fault.rule)
    assert fault.location == f"{split}: {file}"


def test_a_function_of_a_task_that_finds_nothing_is_not_said_to_be_without_data(
    folder: Path, asking: Asking
) -> None:
    (folder / "own.py").write_text("def text(doc):\n    return next(iter(()))\n")
    write_task(folder, "own")
    file = folder / "own.yaml"
    changed = file.read_text().replace("doc_to_text: question", "doc_to_text: !function own.text")
    file.write_text(changed)
    (fault,) = faults(asking, "own")
    assert "cannot be loaded: its doc_to_text: StopIteration" in fault.rule


def test_a_filter_that_the_task_has_not_is_told_before_any_model_is_asked(tokenizer: Any) -> None:
    (fault,) = faults(
        Evaluator, suite(in_domain=[{"task": "list_max", "filter": "strict"}]), tokenizer
    )
    assert fault.field == "eval.in_domain"
    assert fault.rule == "task list_max cannot be loaded: its filter must be none, got strict"


def test_metrics_that_tasks_do_not_give_are_the_user_s_faults_all_at_once(
    base_model: Any, tokenizer: Any
) -> None:
    """Each time the base is evaluated anew."""
    asked, other = {"task": "list_max", "metric": "exact_match"}, {"task": "sort_numbers"}
    wanted = suite(in_domain=[asked], ood=["list_last"], retention=[other | {"metric": "f1"}])
    first, second = faults(Evaluator(wanted, tokenizer).evaluate, base_model)
    assert (first.field, second.field) == ("eval.in_domain", "eval.retention")
    assert first.rule == "task list_max gives no exact_match"
    assert "acc (filter none)" in first.remedy
    assert second.rule.startswith("task sort_numbers gives no f1")


WRITTEN = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 1},
    "metric_list": [{"metric": "exact_match"}],
}


def fault_at_load(asking: Asking, task: Any) -> str:
    (fault,) = faults(asking, task)
    return fault.rule.partition(" cannot be loaded: ")[2]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"metric_list": [{"metric": "acc_nrm"}]},
            "its metric acc_nrm has no aggregation and is unknown; did you mean acc_norm?",
        ),
        (
            {"metric_list": [{"metric": "accuracyy"}]},
            "its metric accuracyy has no aggregation and is unknown; the harness has acc, acc_all,",
        ),
        (
            {"metric_list": [{"metric": "acc", "aggregation": "average"}]},
            "the aggregation of its acc is unknown; the harness has bits_per_byte,",
        ),
        (
            WRITTEN | {"metric_list": [{"metric": "rooge", "aggregation": "mean"}]},
            "its metric rooge is neither the harness's nor found by `evaluate`; the harness has a",
        ),
        (
            {"filter_list": [{"name": "own", "filter": [{"function": "regexx"}]}]},
            "Unknown filter 'regexx'. Did you mean: regex, regex_pos? Available: custom, ",
        ),
        (
            {"fewshot_config": {"sampler": "firstn"}, "fewshot_split": "test"},
            "Attempted to use contextsampler 'firstn', but no sampling strategy ",
        ),
        ({"doc_to_text": None}, "it has no doc_to_text that the harness can read"),
        ({"doc_to_target": None}, "it has no doc_to_target that the harness can read"),
        ({"doc_to_choice": None}, "it has no doc_to_choice, which lists the answers of a multiple"),
    ],
)
def test_what_a_task_lacks_is_named_before_any_model_runs(
    fields: dict[str, Any], told: str, folder: Path, asking: Asking
) -> None:
    write_task(folder, "own", **fields)
    assert fault_at_load(asking, "own").startswith(told)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("docs.select([])", "its data hold no rows, or its process_docs leaves none"),
        ("docs[99]", "IndexError: Invalid key: 99 is out of bounds for size 12"),
    ],
)
def test_a_task_that_is_left_without_documents_says_so(
    function: str, told: str, folder: Path, asking: Asking
) -> None:
    code = f"def kept(docs):\n    return {function}\n"
    write_coded_task(folder, "own", code, "process_docs: !function own.kept")
    assert fault_at_load(asking, "own") == told


def test_tasks_of_a_group_that_there_are_not_are_named(folder: Path, asking: Asking) -> None:
    inner = {"group": "inner", "task": ["few", {"task": "othr", "num_fewshot": 0}]}
    aggregate: dict[str, Any] = {"aggregate_metric_list": [{"metric": "acc"}]}
    write_group(folder, "both", task=[inner | aggregate], **aggregate)
    told = fault_at_load(asking, "both")
    assert told == "it lists tasks that do not exist: othr; did you mean other?"


def test_a_group_of_one_s_own_may_name_tasks_of_the_harness(folder: Path) -> None:
    """And spell out others, which need no file: the harness knows all of these."""
    aggregate = [{"metric": "acc"}]
    spelt_out = yaml.safe_load((folder / "few.yaml").read_text()) | {"task": "inline"}
    asked = ["few", "sciq", spelt_out]
    write_group(folder, "both", task=asked, aggregate_metric_list=aggregate)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    assert absent_names("both", manager.task_index) == ["sciq"]
    assert absent_names("both", TaskManager(include_path=str(folder)).task_index) == []
    write_group(folder, "both", task=["few", spelt_out], aggregate_metric_list=aggregate)
    (loaded,) = load_tasks(suite(task_dirs=(str(folder),), in_domain=["both"]))
    assert set(loaded.tasks["tasks"]) == {"few", "both::inline"}


def test_a_group_hands_its_data_down_to_the_tasks_of_its_groups(folder: Path) -> None:
    spelt_out = yaml.safe_load((folder / "few.yaml").read_text()) | {"task": "inline"}
    data = {key: spelt_out.pop(key) for key in ("dataset_path", "dataset_kwargs")}
    inner = {"group": "inner", "task": [spelt_out], "aggregate_metric_list": [{"metric": "acc"}]}
    aggregate = [{"metric": "acc"}]
    write_group(folder, "outer", task=[inner], aggregate_metric_list=aggregate, **data)
    (loaded,) = load_tasks(suite(task_dirs=(str(folder),), in_domain=["outer"]))
    assert set(loaded.tasks["tasks"]) == {"outer::inner::inline"}


def test_a_task_that_scores_itself_may_list_what_it_never_gives(folder: Path) -> None:
    never = {"metric": "mystery", "aggregation": "whatever"}
    with_results(folder, "own", "{'acc': 1.0}", metric_list=[{"metric": "acc"}, never])
    (loaded,) = load_tasks(suite(task_dirs=(str(folder),), in_domain=["own"]))
    assert set(loaded.tasks["tasks"]) == {"own"}


def test_a_tag_cannot_be_renamed(folder: Path, asking: Asking) -> None:
    write_task(folder, "one", tag="mine")
    told = fault_at_load(asking, {"task": "mine", "name": "other"})
    assert told == "only a single task takes `name` and `data_files`, this is a tag"


def test_a_group_that_asks_what_its_tasks_do_not_give_gives_no_number(
    base_model: Any, folder: Path, asking: Asking
) -> None:
    write_group(folder, "both", aggregate_metric_list=[{"metric": "accc"}])
    (fault,) = faults(asking("both").evaluate, base_model)
    assert fault.rule == "task both gives no number"
    assert "of a group aggregate_metric_list" in fault.remedy


def with_results(folder: Path, name: str, results: str, **fields: Any) -> None:
    """A task that scores its documents by a function, given as an expression."""
    code = f"def results(doc, answers):\n    return {results}\n"
    write_coded_task(folder, name, code, f"process_results: !function {name}.results", **fields)


def test_a_task_whose_scores_are_no_numbers_and_one_that_fails_are_told_at_once(
    base_model: Any, folder: Path, asking: Asking
) -> None:
    with_results(folder, "void", "{'acc': float('nan')}")
    with_results(folder, "bad", "1 / 0")
    void, bad = faults(asking("void", ood=["bad"]).evaluate, base_model)
    assert str(void) == "eval.in_domain: task void gives no number; it gives acc (filter none) nan"
    assert str(bad).startswith("eval.ood: failed, document 1 {'answer': ")
    assert str(bad).endswith(", task bad: ZeroDivisionError: division by zero")


def test_where_memory_runs_out_no_fault_of_another_task_hides_it(
    base_model: Any, folder: Path, asking: Asking
) -> None:
    """Else the batch would not be halved."""
    with_results(folder, "void", "{'acc': float('nan')}")
    with_results(folder, "bad", "torch.empty(2**50)")
    file = folder / "bad.py"
    file.write_text(f"import torch\n{file.read_text()}")
    with pytest.raises(RuntimeError, match="allocate memory"):
        asking("void", ood=["bad"]).evaluate(base_model)


def test_metrics_may_have_commas_in_their_names(
    tuned: Any, tokenizer: Any, folder: Path, asking: Asking
) -> None:
    metric = {"metric": "pass@1/x,y", "aggregation": "mean", "higher_is_better": True}
    first = [{"name": "plain", "filter": [{"function": "take_first"}]}]
    fields = WRITTEN | {"metric_list": [metric], "filter_list": first}
    with_results(folder, "named", "{'pass@1/x,y': 0.25 * doc['answer']}", **fields)
    evaluation = asking("named").evaluate(tuned)
    score = evaluation.scores["named"]
    assert (score.metric, score.filter) == ("pass@1/x,y", "plain")
    assert score.items == len(evaluation.items) == 12
    expected = harness(tuned, tokenizer, ["named"], folder)["results"]["named"]
    assert 0 < score.value == expected["pass@1/x,y,plain"] < 1
    assert evaluation.metrics["in_domain/named/pass@1/x,y"] == score.value


@pytest.mark.parametrize("role", ["in_domain", "retention", "ood"])
def test_an_error_is_no_skill_and_never_maximised(
    role: str, base_model: Any, folder: Path, asking: Asking
) -> None:
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "question",
        "doc_to_choice": None,
        "metric_list": [{"metric": "word_perplexity"}],
    }
    write_task(folder, "texts", **rolling)
    tasks = {"in_domain": ["few"]} | {role: ["texts"]}
    with pytest.raises(UserError, match="word_perplexity is better where it is lower") as caught:
        asking(**tasks).evaluate(base_model)
    (fault,) = caught.value.faults
    assert fault.field == f"eval.{role}"
    assert fault.remedy == "leave it out; drift on texts is measured by eval.general_text"


def test_where_an_error_is_named_the_skills_that_the_task_measures_are_told(
    base_model: Any, tokenizer: Any, folder: Path
) -> None:
    error = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": False}
    metrics = [{"metric": "acc"}, error, {"metric": "acc_bytes"}]
    write_task(folder, "graded", metric_list=metrics)
    asked = suite(in_domain=[{"task": "graded", "metric": "acc_norm"}], task_dirs=(str(folder),))
    with pytest.raises(UserError, match="acc_norm is better where it is lower") as caught:
        Evaluator(asked, tokenizer).evaluate(base_model)
    (fault,) = caught.value.faults
    assert fault.remedy == "set its `metric` to acc or acc_bytes"


@pytest.mark.parametrize(
    ("role", "metric", "score"),
    [
        ("in_domain", "bleu_max", "32.5 if doc['answer'] else 0.5"),
        ("retention", "bleu_max", "32.5 if doc['answer'] else 0.5"),
        ("in_domain", "bleu", "0.0"),  # else each trial would train first, and fail
    ],
)
def test_a_score_on_another_scale_is_refused_though_the_base_may_have_none(
    role: str, metric: str, score: str, base_model: Any, folder: Path, asking: Asking
) -> None:
    """BLEU's goes to 100: averaged with accuracies it would decide the search alone."""
    bleu = {"metric": metric, "aggregation": "mean", "higher_is_better": True}
    with_results(folder, "texts", f"{{{metric!r}: {score}}}", metric_list=[bleu])
    tasks: dict[str, Any] = {"in_domain": ["few"]} | {role: ["texts"]}
    (fault,) = faults(asking(**tasks).evaluate, base_model)
    assert fault.field == f"eval.{role}"
    assert fault.rule.startswith(f"task texts: its {metric} is no share of 1")


def test_standard_errors_are_found_without_further_processes(
    base_model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, asking: Asking
) -> None:
    """In a Ray worker the harness's pool for those of f1 never ended."""
    write_task(folder, "texts", metric_list=[{"metric": "f1"}])
    monkeypatch.setattr(multiprocessing, "Pool", None)
    assert "in_domain/texts/f1_stderr" in asking("texts").evaluate(base_model).metrics


def test_what_decides_the_numbers_is_what_functions_do_and_not_where_they_lie(
    folder: Path, asking: Asking
) -> None:
    """Of a partial function the harness tells its address, another one in every process."""

    def description(rows: str, besides: str = "") -> str:
        code = (
            f"from functools import cache, partial\n{besides}@cache\n"
            f"def some(docs, number):\n    return docs.select({rows})\n"
            "few = partial(some, number=3)\n"
        )
        write_coded_task(folder, "texts", code, "process_docs: !function texts.few")
        return json.dumps(asking("texts").describe())

    first, edited = description("range(number)"), description("list(range(number))")
    assert " at 0x" not in first
    assert "docs.select(range(number))" in first
    assert first != edited
    # The function may use what stands beside it in its file.
    beside = [description("range(number)", f"PART = {part}\n") for part in (1, 2, 2)]
    assert first not in beside
    assert beside[0] != beside[1] == beside[2]


def test_the_class_of_a_task_decides_its_numbers_too(folder: Path, asking: Asking) -> None:
    def description(word: str) -> str:
        code = (
            "from lm_eval.api.task import ConfigurableTask\n\n\n"
            "class Own(ConfigurableTask):\n"
            "    def __init__(self, config=None):\n"
            "        config.pop('class')\n        super().__init__(config=config)\n\n"
            f"    def doc_to_target(self, doc, *_):\n        return {word!r}\n"
        )
        write_coded_task(folder, "own", code, "class: !function own.Own")
        return json.dumps(asking("own").describe())

    assert len({description(word) for word in ("a", "b", "b")}) == 2


def test_what_counts_as_measured_is_a_number() -> None:
    assert all(map(is_number, (1, 0.5, np.float32(0.5), np.int64(1))))
    assert not any(map(is_number, (math.nan, np.float32("nan"), "0.5", None, (1, 0))))


def test_forgetting_needs_a_number_of_each_document(
    base_model: Any, folder: Path, asking: Asking
) -> None:
    write_task(folder, "macro", metric_list=[{"metric": "mcc"}])
    assert not asking("macro").evaluate(base_model).items
    retention = asking("few", retention=["macro"])
    with pytest.raises(UserError, match="macro: its mcc is of all documents"):
        retention.evaluate(base_model)


def test_code_that_a_model_writes_is_not_run(folder: Path, asking: Asking) -> None:
    write_task(folder, "code", unsafe_code=True)
    with pytest.raises(UserError, match="code cannot be loaded: it runs code that the model"):
        asking("code")


def test_accuracy_is_averaged_over_each_role(
    tuned: Any, tokenizer: Any, load: Callable[..., SweepConfig]
) -> None:
    evaluation = Evaluator(load().eval, tokenizer).evaluate(tuned)
    for role in ("in_domain", "retention", "ood"):
        values = [score.value for score in evaluation.scores.values() if score.role == role]
        assert evaluation.metrics[f"{role}/acc_mean"] == pytest.approx(sum(values) / len(values))
