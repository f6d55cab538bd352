"""What counts as a task's accuracy, its level of chance, its right answers and its errors."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from faults import faults
from own_tasks import (
    BUNDLED,
    EMBEDDED,
    suite,
    write_coded_task,
    write_rows,
    write_scored_task,
    write_task,
)

from trainables.errors import error_text
from trainables.evaluation.evaluator import Evaluator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import EvalSuite

    Asking = Callable[..., Evaluator]


def change_answers(file: Path, change: Callable[[dict[str, Any]], Any], first: int = 0) -> None:
    """Give the questions from the first one on another right answer."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[first:]:
        row["answer"] = change(row)
    write_rows(file, rows)


def own_questions(file: Path) -> EvalSuite:
    asked = {"task": "question_answering", "name": "mine", "data_files": {"test": str(file)}}
    return suite(task_dirs=(BUNDLED,), in_domain=[asked])


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes", "acc_mutual_info"])
def test_the_answer_that_is_shown_is_the_one_that_was_scored(
    tuned: Any, folder: Path, metric: str, asking: Asking
) -> None:
    """Choices are of one to three characters, of which longer ones have more bytes still."""
    words = ["9", "12", "\u00e4\u00f6\u00fc"]
    rows = [
        {"question": f"max {n} {n + 3} =", "choices": words, "answer": n % 3} for n in range(16)
    ]
    write_rows(folder / "test.jsonl", rows)
    write_task(folder, "unlike", metric_list=[{"metric": metric}])
    items = asking({"task": "unlike", "metric": metric}).evaluate(tuned).items
    assert [item.answer == item.target for item in items] == [item.score == 1.0 for item in items]
    assert {item.score for item in items} == {0.0, 1.0}
    assert {item.target for item in items} == set(words)


FOUR, TWO = list("9876"), list("98")


@pytest.mark.parametrize(
    ("choices", "answer", "metric", "chance", "effective"),
    [
        ([FOUR], 0, "acc", 0.25, 4),
        ([FOUR], [0, 1, -100], "acc", 0.5, 2),  # several right answers, padded
        ([FOUR, TWO], 0, "acc", 0.375, 1 + 0.625**2 / 0.21875),
        ([FOUR], 0, "acc_mutual_info", 0.25, 4),  # asks each choice twice
        ([FOUR], 0, "exact_match", 0.0, None),  # of what the model would write
        ([TWO], 0, "f1", None, None),
    ],
)
def test_chance_follows_from_the_number_of_choices_and_the_metric(
    choices: list[list[str]],
    answer: Any,
    metric: str,
    chance: float | None,
    effective: float | None,
    tuned: Any,
    folder: Path,
    asking: Asking,
) -> None:
    rows = [
        {"question": f"max {n} =", "choices": choices[n % len(choices)], "answer": answer}
        for n in range(8)
    ]
    write_rows(folder / "test.jsonl", rows)
    write_task(folder, "own", metric_list=[{"metric": metric}])
    score = asking("own").evaluate(tuned).scores["own"]
    assert (score.metric, score.chance) == (metric, chance)
    assert score.choices == (None if effective is None else pytest.approx(effective))


@pytest.mark.parametrize("answer", ["B", -1, [9]])
def test_right_answers_that_are_no_choices_are_refused(
    answer: Any, base_model: Any, tokenizer: Any, folder: Path
) -> None:
    """The harness gives 0 for them, and only logs it."""
    change_answers(folder / "test.jsonl", lambda row: answer)
    evaluator = Evaluator(own_questions(folder / "test.jsonl"), tokenizer)
    (fault,) = faults(evaluator.evaluate, base_model)
    assert fault.field == "eval.in_domain"
    assert "task mine: the right answer of 12 of 12 docu" in fault.rule
    assert f"such as {answer!r} of document 1 {{'answer': " in fault.rule
    assert "index" in fault.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 9}, "IndexError: its right answer is choice 9 of 0 to 1"),
        ({"choices": None}, "TypeError: "),
    ],
)
def test_an_error_names_its_task_and_document(
    change: dict[str, Any], message: str, base_model: Any, tokenizer: Any, folder: Path
) -> None:
    file = folder / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3] |= change
    write_rows(file, rows)
    with pytest.raises((IndexError, TypeError)) as caught:
        Evaluator(own_questions(file), tokenizer).evaluate(base_model)
    document, task = caught.value.__notes__
    assert document.startswith("document 4 {'answer': ")
    assert task == "task mine"
    assert error_text(caught.value).startswith(message)


def test_metrics_that_tasks_do_not_give_are_reported_all_at_once(
    base_model: Any, folder: Path, asking: Asking
) -> None:
    write_scored_task(folder, "void", "{'acc': float('nan')}")
    write_scored_task(folder, "bad", "1 / 0")
    asked = {"task": "few", "filter": "strict"}
    first, void, bad = faults(asking(asked, retention=["void"], ood=["bad"]).evaluate, base_model)
    assert (first.field, first.rule) == (
        "eval.in_domain",
        "task few gives no number (filter strict)",
    )
    assert "acc (filter none)" in first.remedy
    assert (void.field, void.rule) == ("eval.retention", "task void gives no number")
    assert "acc (filter none) nan" in void.remedy
    assert str(bad).startswith("eval.ood: failed, document 1 {'answer': ")
    assert str(bad).endswith(", task bad: ZeroDivisionError: division by zero")


@pytest.mark.parametrize("role", ["in_domain", "retention"])
@pytest.mark.parametrize(
    ("fields", "scores", "facts"),
    [
        (  # 100 times an accuracy: averaged with others it would decide the search alone
            {"metric": "bleu_max", "aggregation": "mean", "higher_is_better": True},
            "{'bleu_max': 32.5 if doc['answer'] else 0.5}",
            ["task own: its bleu_max is no share of 1, got ", "another `metric`"],
        ),
        (
            {"metric": "loss", "aggregation": "mean", "higher_is_better": False},
            "{'loss': 0.5}",
            ["task own: its loss is better where it is lower", "eval.general_text"],
        ),
    ],
)
def test_what_is_no_accuracy_is_refused(
    role: str,
    fields: dict[str, Any],
    scores: str,
    facts: list[str],
    base_model: Any,
    folder: Path,
    asking: Asking,
) -> None:
    write_scored_task(folder, "own", scores, metric_list=[fields])
    tasks: dict[str, Any] = {"in_domain": ["few"]} | {role: ["own"]}
    (fault,) = faults(asking(**tasks).evaluate, base_model)
    assert fault.field == f"eval.{role}"
    assert [fact for fact in facts if fact not in str(fault)] == []


def test_evaluating_leaves_training_mode_and_random_state_alone(
    base_model: Any, tokenizer: Any, folder: Path
) -> None:
    code = (
        "import random\n\n\ndef question(doc):\n"
        "    return doc['question'] if random.random() < 0.5 else 'max 1 2 ='\n"
    )
    fields = {"doc_to_text": None}
    write_coded_task(folder, "dice", code, "doc_to_text: !function dice.question", **fields)
    asked = suite(
        task_dirs=(EMBEDDED, str(folder)),
        in_domain=["target_relay_generate"],
        retention=[{"task": "few", "num_fewshot": 1}, "dice"],
    )
    evaluator = Evaluator(asked, tokenizer)
    base_model.train()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = evaluator.evaluate(base_model)
    assert base_model.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    random.seed(99)
    assert evaluator.evaluate(base_model) == first
