"""Recipes in a sweep file: what they become, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults import faults as faults_of
from sweep_files import edited, faults

from trainables.config import ModelShape
from trainables.methods import METHODS, Method
from tune.config.method_settings import OverBudget, method_settings
from tune.config.preflight import check_files
from tune.config.recipe_space import PARAMETERS, SPACES, alternatives
from tune.config.sweep_file import load_sweep

RATE = {"learning_rate": 1e-4}
LORA = {"rank": 4, "alpha_ratio": 2, **RATE}
SHAPE = ModelShape(
    hidden=64, intermediate=128, vocabulary=100, layers=2, heads=4, kv_heads=2, head_size=16
)
# Recipes beside the sweep's `lora`, the field at fault, and what its message says.
BAD: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"loara": LORA}, "loara", ["is no method", "did you mean lora?"]),
    ({"mine": LORA}, "mine", ["must name its `method`", "known: "]),
    ({"mine": {"method": "loara", **LORA}}, "mine.method", ["got 'loara'", "did you mean lora?"]),
    ({"frist": [{"rank": 4}]}, "frist", ["unknown key", "did you mean first?"]),
    ({"a": {"method": "full", "loss": "stf", **RATE}}, "a.loss", ["got stf", "did you mean sft?"]),
    ({"a": {"method": "full", "loss": [], **RATE}}, "a.loss", ["a loss at least", "known: "]),
    ({"a": {"method": "lora", "loss": "l2", **LORA}}, "a.loss", ["be l2, as LoRA leaves", "other"]),
    ({"full": {"dropout": 0.1, **RATE}}, "full.dropout", ["no field of full", "have it"]),
    ({"full": {"rank": 4, **RATE}}, "full.rank", ["no field of full, of one size", "have it"]),
    ({"full": {"parameters": 4, **RATE}}, "full.parameters", ["of one size", "have it"]),
    ({"a": {"method": "lora", "parameters": 9, **LORA}}, "a", ["rank and parameters", "got both"]),
    (
        {"a": {"method": "lora", **RATE}},
        "a",
        ["rank and parameters, got neither", "alpha and alpha_ratio, got neither"],
    ),
    ({"a": {"method": "lora", **LORA, "rnak": 1}}, "a.rnak", ["did you mean rank?"]),
    ({"a": {"method": "lora", **LORA, "lora_r": 1}}, "a.lora_r", ["did you mean rank?"]),
    ({"a.b": {"method": "lora", **LORA}}, "a.b", ["begin with a letter"]),
    ({"a": {"method": "lora", **LORA, "rank": 0}}, "a.rank.0", ["must be >= 1, got 0"]),
]


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(edited(**changes))
    return file


@pytest.mark.parametrize(("recipes", "field", "facts"), BAD, ids=[field for _, field, _ in BAD])
def test_what_is_wrong_with_a_recipe_is_one_fault(
    recipes: dict[str, Any], field: str, facts: list[str], tmp_path: Path
) -> None:
    changes = {f"search__{name}": space for name, space in recipes.items()}
    (fault,) = faults(written(tmp_path, **changes))
    assert fault.field == f"search.{field}"
    assert [fact for fact in facts if fact not in str(fault)] == []


def test_all_recipes_at_fault_are_reported_at_once(tmp_path: Path) -> None:
    wrong = {f"search__{key}": own for key in ("loara", "full") for own in [BAD[0][0]["loara"]]}
    found = faults(written(tmp_path, search__b={"method": "full", "loss": "x", **RATE}, **wrong))
    fields = {fault.field.removeprefix("search.") for fault in found}
    assert fields == {"b.loss", "loara", "full.rank", "full.alpha_ratio"}


@pytest.mark.parametrize(
    ("resources", "field", "fact"),
    [
        ({"loara": {"workers": 2}}, "resources.loara", "did you mean lora?"),
        ({"full": {"slots": 2}}, "resources.full.slots", "changes the base"),
        ({"a": {"slots": "auto"}}, "resources.a.slots", "norms are not batched"),
        ({"workers": 2}, "resources.workers", "resources.a.workers"),
    ],
)
def test_resources_that_no_recipe_takes_are_refused(
    resources: dict[str, Any], field: str, fact: str, tmp_path: Path
) -> None:
    recipes = {"search__full": RATE, "search__a": {"method": "lora", "dora": True, **LORA}}
    (fault,) = faults(written(tmp_path, resources=resources, **recipes))
    assert fault.field == field
    assert fact in str(fault)


def test_resources_of_a_recipe_are_its_own_else_those_of_its_method(tmp_path: Path) -> None:
    spaces = {f"search__{name}": {"method": "lora", **LORA} for name in ("a", "b")}
    resources = {"lora": {"cpus_per_worker": 2}, "b": {"cpus_per_worker": 3}}
    config = load_sweep(
        str(written(tmp_path, resources=resources, search__full=RATE, **spaces)), []
    )
    held = {each: config.recipe_resources(each).cpus_per_worker for each in config.search.recipes}
    assert held == {"lora": 2, "a": 2, "b": 3, "full": 1}


def test_a_base_of_4_bits_takes_only_methods_that_train_on_it(tmp_path: Path) -> None:
    file = written(tmp_path, search__f={"method": "full", **RATE}, model__load_in_4bit=True)
    (fault,) = faults(file)
    assert fault.field == "search.f"
    assert "load_in_4bit" in fault.rule


def test_a_start_from_general_text_needs_some(tmp_path: Path) -> None:
    space = {"search__a": {"method": "corda", **LORA}}
    (fault,) = faults(written(tmp_path, eval__general_text=None, **space))
    assert fault.field == "eval.general_text"
    assert "must name texts, which CorDA starts from (search.a), got none" in fault.rule


@pytest.mark.parametrize(
    "stage", [{"zero_stage": 3}, {"config": {"zero_optimization": {"stage": 3}}}]
)
def test_sharded_weights_are_not_held_at_the_base(stage: dict[str, Any], tmp_path: Path) -> None:
    space = {"method": "full", "loss": ["l2", "kl"], **RATE}
    (fault,) = faults(written(tmp_path, search__a=space, deepspeed=stage))
    assert fault.field == "search.a.loss"
    assert "cannot be l2, as ZeRO-3" in fault.rule


WITH_CAPACITY = [method for method in METHODS if method.capacity_field is not None]


def smallest_settings(method: type[Method]) -> dict[str, Any]:
    """Choices of a method, apart from its capacity."""
    example = method.example()
    instead = alternatives(method)
    fields = [name for name, own in method.model_fields.items() if own.is_required()]
    ratios = {ratio.axis: 2.0 for ratio in method.ratios}
    return ratios | {name: getattr(example, name) for name in fields if name not in instead}


@pytest.mark.parametrize("method", WITH_CAPACITY, ids=[each.name for each in WITH_CAPACITY])
def test_a_budget_gives_the_largest_capacity_that_fits(method: type[Method]) -> None:
    settings = smallest_settings(method)
    field = str(method.capacity_field)
    sizes = {}
    for number in range(1, 129):
        axes = {field: number, **settings, **RATE}
        try:
            made = method_settings(SPACES[method.name].model_validate(axes), {}, SHAPE)
        except ValueError:  # it has no such capacity
            continue
        if made.misfit(SHAPE) is None:
            sizes[number] = made.parameters(SHAPE)
    assert sizes
    budgets = {max(1, size + more) for size in sizes.values() for more in (-1, 0)}
    for budget in sorted(budgets)[:60]:
        space = SPACES[method.name].model_validate({PARAMETERS: budget, **settings, **RATE})
        fitting = [size for size in sizes.values() if size <= budget]
        if fitting:
            assert method_settings(space, {}, SHAPE).parameters(SHAPE) == max(fitting)
        else:
            with pytest.raises(OverBudget):
                method_settings(space, {}, SHAPE)


def test_settings_that_do_not_divide_the_layers_are_refused(tmp_path: Path) -> None:
    c3a = "search.c3a={block_size: [4, 5, 7], learning_rate: 0.001}"
    found = faults_of(check_files, load_sweep("quickstart", [c3a]), tmp_path)
    assert {fault.field for fault in found} == {"search.c3a"}
    assert [fault.rule.rpartition(": ")[2] for fault in found] == [
        "block size 5 does not divide 128",
        "block size 7 does not divide 128",
    ]


def test_a_budget_that_no_capacity_fits_is_refused_before_anything_runs(tmp_path: Path) -> None:
    lora = "search.lora={parameters: [100, 20000], alpha_ratio: 2, learning_rate: 0.001}"
    (fault,) = faults_of(check_files, load_sweep("quickstart", [lora]), tmp_path)
    assert fault.field == "search.lora.parameters"
    assert "at least 9,856" in fault.rule
    assert "got 100" in fault.rule
    unknown = load_sweep("quickstart", [lora, f"model.name={tmp_path}"])
    found = faults_of(check_files, unknown, tmp_path)
    assert [each.remedy for each in found if each.field == "search.lora.parameters"] == [
        "give model.shape, or rank instead"
    ]
