"""From a sweep file to a configuration, or to faults that a user can act on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainables.errors import Fault, UserError
from tune.search_config import LogUniform
from tune.sweep_config import SweepConfig
from tune.sweep_file import bundled_sweeps, load_sweep

SWEEP = """\
name: tiny
model: {name: some/model}
data:
  path: rows.jsonl
eval:
  in_domain: [a]
  retention: [b]
search:
  lora:
    rank: [4, 8]
    alpha_ratio: 2
    learning_rate: {low: 1.0e-5, high: 1.0e-3}
objectives:
  - {metric: in_domain/acc_mean, mode: max}
  - {metric: forgetting/mean, mode: min}
train:
  batch_size: 16
  micro_batch_size: 4
"""
JARGON = re.compile(
    r"value error|input should|valid tuple|tuple|dictionary|instance of|pydantic|literal\["
    r"|function-|<range>|<list>|<unicode|NoneType|validat",
    re.IGNORECASE,
)
Write = Any


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str = SWEEP, name: str = "tiny.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def edited(**changes: Any) -> str:
    """The sweep with values put in: `search__lora__rank=[0]`; `...` removes."""
    raw = yaml.safe_load(SWEEP)
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = raw
        for part in parents:
            section = section.setdefault(part, {})
        if value is ...:
            del section[last]
        else:
            section[last] = value
    return yaml.safe_dump(raw, sort_keys=False)


def faults(file: Path, *overrides: str) -> list[Fault]:
    with pytest.raises(UserError) as caught:
        load_sweep(str(file), list(overrides))
    for fault in caught.value.faults:
        assert not JARGON.search(str(fault).replace(str(file.parent), "")), fault
        assert "\n" not in str(fault)
    return caught.value.faults


def only_fault(file: Path, *overrides: str) -> Fault:
    found = faults(file, *overrides)
    assert len(found) == 1, list(map(str, found))
    return found[0]


def load(file: Path, *overrides: str) -> SweepConfig:
    return load_sweep(str(file), list(overrides))


# One thing wrong: field, rule with the value, remedy.
RANGE = {"low": 1e-3, "high": 1e-3}
ONE_FAULT: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "rank 0": (
        {"search__lora__rank": [4, 0]},
        "search.lora.rank.1",
        "must be >= 1, got 0",
        "",
    ),
    "rank of text": (
        {"search__lora__rank": "four"},
        "search.lora.rank.0",
        "must be a whole number, got 'four'",
        "",
    ),
    "rank with a fraction": (
        {"search__lora__rank": 1.5},
        "search.lora.rank.0",
        "must be a whole number, got 1.5",
        "",
    ),
    "no rank to choose from": (
        {"search__lora__rank": []},
        "search.lora.rank",
        "must hold at least 1 value, got []",
        "",
    ),
    "a rank twice": (
        {"search__lora__rank": [4, 8, 4]},
        "search.lora.rank",
        "values must be distinct, got 4 more than once",
        "",
    ),
    "learning rate 0": (
        {"search__lora__learning_rate": [1e-4, 0]},
        "search.lora.learning_rate.1",
        "must be > 0, got 0",
        "",
    ),
    "learning rate range from 0": (
        {"search__lora__learning_rate": {"low": 0, "high": 1e-3}},
        "search.lora.learning_rate.low",
        "must be > 0, got 0",
        "",
    ),
    "learning rate range of one": (
        {"search__lora__learning_rate": RANGE},
        "search.lora.learning_rate.low",
        "must be below high, got 0.001 and 0.001",
        "",
    ),
    "half a range": (
        {"search__lora__learning_rate": {"low": 1e-5}},
        "search.lora.learning_rate.high",
        "is required and absent",
        "",
    ),
    "misspelt range": (
        {"search__lora__learning_rate": {"low": 1e-5, "hihg": 1e-3}},
        "search.lora.learning_rate.hihg",
        "unknown key",
        "did you mean high?",
    ),
    "infinite learning rate": (
        {"search__lora__learning_rate": [float("inf")]},
        "search.lora.learning_rate.0",
        "must be a finite number, got inf",
        "",
    ),
    "both alphas": (
        {"search__lora__alpha": 16},
        "search.lora",
        "give exactly one of alpha and alpha_ratio, got both",
        "",
    ),
    "no alpha": (
        {"search__lora__alpha_ratio": ...},
        "search.lora",
        "give exactly one of alpha and alpha_ratio, got neither",
        "",
    ),
    "modules without their list": (
        {"search__lora__target_modules": ["q_proj"]},
        "search.lora.target_modules.0",
        "must be all-linear or a list of module names, got 'q_proj'",
        "one choice of two modules reads [[q_proj, v_proj]]",
    ),
    "dropout of everything": (
        {"search__lora__dropout": 1.0},
        "search.lora.dropout.0",
        "must be < 1, got 1.0",
        "",
    ),
    "flag that is none": (
        {"search__lora__rslora": "perhaps"},
        "search.lora.rslora.0",
        "must be true or false, got 'perhaps'",
        "",
    ),
    "nothing to search": (
        {"search": {}},
        "search",
        "give a space for at least one method: lora, full",
        "",
    ),
    "section that is a number": (
        {"search__lora": 5},
        "search.lora",
        "must be a section with keys of its own, got 5",
        "known: alpha, alpha_ratio, batch_size, dora, dropout, epochs, learning_rate, rank, rslora,"
        " target_modules",
    ),
    "empty section": (
        {"train": None},
        "train",
        "must be a section with keys of its own, got null",
        "fill it in or leave it out",
    ),
    "misspelt section": ({"trian": {}}, "trian", "unknown key", "did you mean train?"),
    "misspelt key": ({"train__step": 5}, "train.step", "unknown key", "did you mean steps?"),
    "misspelt key in capitals": (
        {"search__lora__Rank": [4]},
        "search.lora.Rank",
        "unknown key",
        "did you mean rank?",
    ),
    "misspelt key of a method's space": (
        {"search__lora__aplha": 5},
        "search.lora.aplha",
        "unknown key",
        "did you mean alpha?",
    ),
    "misspelt key of a task": (
        {"eval__in_domain": [{"taks": "a"}]},
        "eval.in_domain.0.taks",
        "unknown key",
        "did you mean task?",
    ),
    "key like no other": (
        {"wandb__zzz": 1},
        "wandb.zzz",
        "unknown key",
        "known: entity, mode, project, tags",
    ),
    "number as a key": (
        {"train__1": 2},
        "train.1",
        "unknown key",
        "known: batch_size, epochs, gradient_checkpointing, log_every, max_grad_norm, "
        "micro_batch_size, report_every, save_weights, schedule, steps, warmup, weight_decay",
    ),
    "task that is a number": (
        {"eval__in_domain": [5]},
        "eval.in_domain.0",
        "must be a section with keys of its own, got 5",
        "known: data_files, filter, limit, metric, name, num_fewshot, task",
    ),
    "task outside a list": (
        {"eval__in_domain": "a"},
        "eval.in_domain",
        "must be a list, got 'a'",
        "write [a]",
    ),
    "role that is a number": ({"eval__ood": 5}, "eval.ood", "must be a list, got 5", "write [5]"),
    "task with a negative number of shots": (
        {"eval__in_domain": [{"task": "a", "num_fewshot": -1}]},
        "eval.in_domain.0.num_fewshot",
        "must be >= 0, got -1",
        "",
    ),
    "task's name with a slash": (
        {"eval__in_domain": [{"task": "a", "name": "x/y"}]},
        "eval.in_domain.0.name",
        "must hold only letters, digits, _ . and -, got 'x/y'",
        "",
    ),
    "data file that is a number": (
        {"eval__in_domain": [{"task": "a", "data_files": {"test": 5}}]},
        "eval.in_domain.0.data_files.test",
        "must be text, got 5",
        'write "5"',
    ),
    "a task twice": (
        {"eval__retention": ["a"]},
        "eval",
        "each task may stand in one role once, got a more than once",
        "give one of them another `name`",
    ),
    "no model": ({"model": ...}, "model", "is required and absent", ""),
    "no model name": ({"model__name": ...}, "model.name", "is required and absent", ""),
    "name with a slash": (
        {"name": "a/b"},
        "name",
        "must begin with a letter or digit and hold only letters, digits, _ and -, got 'a/b'",
        "",
    ),
    "name that YAML reads as a number": (
        {"name": 2024},
        "name",
        "must be text, got 2024",
        'write "2024"',
    ),
    "long name": (
        {"name": "a" * 65},
        "name",
        f"must have at most 64 characters, got '{'a' * 59}...",
        "",
    ),
    "word that is none of the choices": (
        {"train__schedule": "cosin"},
        "train.schedule",
        "must be constant, linear or cosine, got 'cosin'",
        "did you mean cosine?",
    ),
    "number that is none of the choices": (
        {"deepspeed__zero_stage": 4},
        "deepspeed.zero_stage",
        "must be 0, 1, 2 or 3, got 4",
        "",
    ),
    "batch that micro-batches do not fill": (
        {"train__batch_size": 6},
        "train.batch_size",
        "must be a multiple of micro_batch_size, got 6 and 4",
        "",
    ),
    "batch that workers do not fill": (
        {"resources__lora__workers": 3},
        "train.batch_size",
        "must be a multiple of train.micro_batch_size x resources.lora.workers = 12, got 16",
        "",
    ),
    "searched batch that micro-batches do not fill": (
        {"search__lora__batch_size": [16, 18]},
        "search.lora.batch_size",
        "must be a multiple of train.micro_batch_size x resources.lora.workers = 4, got 18",
        "",
    ),
    "report between steps": (
        {"train__report_every": 1.5},
        "train.report_every",
        "must be a whole number of steps or a share below 1, got 1.5",
        "",
    ),
    "offload without its stage": (
        {"deepspeed": {"offload_parameters": True}},
        "deepspeed.offload_parameters",
        "needs zero_stage 3, got 2",
        "",
    ),
    "no objective": (
        {"objectives": []},
        "objectives",
        "must hold at least 1 value, got []",
        "",
    ),
    "objective that nothing logs": (
        {"objectives": [{"metric": "forgetting/maen", "mode": "min"}]},
        "objectives.0.metric",
        "nothing logs forgetting/maen",
        "did you mean forgetting/mean?",
    ),
    "objective that needs retention tasks": (
        {
            "eval__retention": ...,
            "objectives": [{"metric": "forgetting/mean", "mode": "min"}],
        },
        "objectives.0.metric",
        "nothing logs forgetting/mean",
        "it needs tasks in eval.retention",
    ),
    "objective that needs shifted tasks": (
        {"objectives": [{"metric": "ood/acc_mean", "mode": "max"}]},
        "objectives.0.metric",
        "nothing logs ood/acc_mean",
        "it needs tasks in eval.ood",
    ),
    "objective that needs general text": (
        {"objectives": [{"metric": "forgetting/nll", "mode": "min"}]},
        "objectives.0.metric",
        "nothing logs forgetting/nll",
        "it needs eval.general_text",
    ),
    "objective twice": (
        {"objectives": [{"metric": "forgetting/mean", "mode": mode} for mode in ("min", "max")]},
        "objectives.1.metric",
        "each objective must be another metric, got forgetting/mean again",
        "",
    ),
    "objective without a direction": (
        {"objectives": [{"metric": "forgetting/mean"}]},
        "objectives.0.mode",
        "is required and absent",
        "",
    ),
    "constraint with an equals sign": (
        {"constraints": ["forgetting/mean = 0.05"]},
        "constraints.0",
        "must read `metric <= number` (or <, >=, >), got 'forgetting/mean = 0.05'",
        "",
    ),
    "constraint without a number": (
        {"constraints": ["forgetting/mean <= little"]},
        "constraints.0",
        "must read `metric <= number` (or <, >=, >), got 'forgetting/mean <= little'",
        "",
    ),
    "constraint on what nothing logs": (
        {"constraints": ["forgetting/men <= 0.05"]},
        "constraints.0",
        "nothing logs forgetting/men",
        "did you mean forgetting/mean?",
    ),
    "grid over a range": (
        {"sampler": "grid"},
        "search.lora.learning_rate",
        "a grid needs a list of values, got a range",
        "write [1e-4, 3e-4, 1e-3] or choose another sampler",
    ),
    "no trials": ({"budget__trials": 0}, "budget.trials", "must be >= 1, got 0", ""),
}


@pytest.mark.parametrize("case", ONE_FAULT)
def test_one_thing_wrong_is_one_fault_with_field_rule_value_and_remedy(
    case: str, write: Write
) -> None:
    changes, field, rule, remedy = ONE_FAULT[case]
    fault = only_fault(write(edited(**changes)))
    assert (fault.field, fault.rule, fault.remedy) == (field, rule, remedy)


@pytest.mark.parametrize(
    ("bad", "instead", "line"),
    [
        ("rank: [4, 8]", "rank: [4, 0]", 10),
        ("mode: max", "mode: maximum", 14),
        ("in_domain: [a]", "in_domain: [{task: a, nmae: b}]", 6),
        ("batch_size: 16", "batch_size: 6", 17),
        ("path: rows.jsonl", "paht: rows.jsonl", 4),
        ("alpha_ratio: 2", "alpha_ratio: 2\n    alpha: 2", 9),
        ("metric: forgetting/mean", "metric: forgetting/maen", 15),
    ],
)
def test_a_fault_names_file_and_line(bad: str, instead: str, line: int, write: Write) -> None:
    file = write(SWEEP.replace(bad, instead, 1))
    fault = only_fault(file)
    assert fault.location == f"{file}:{line}"
    assert str(fault).endswith(f"({file}:{line})")


def test_all_faults_are_reported_at_once(write: Write) -> None:
    file = write(
        edited(search__lora__rank=[0], train__step=3, seed=-1, budget__trials="few", model={})
    )
    assert {fault.field for fault in faults(file)} == {
        "search.lora.rank.0",
        "train.step",
        "seed",
        "budget.trials",
        "model.name",
    }


def test_all_faults_between_sections_are_reported_at_once(write: Write) -> None:
    file = write(
        edited(
            sampler="grid",
            resources__lora__workers=3,
            objectives=[{"metric": "x", "mode": "min"}],
            constraints=["y < 1"],
        )
    )
    assert {fault.field for fault in faults(file)} == {
        "search.lora.learning_rate",
        "train.batch_size",
        "objectives.0.metric",
        "constraints.0",
    }


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("name: a\nmodel: {name: b\n", "expected ',' or '}'", 3),
        ("name: a\n\tmodel: b\n", "cannot start any token", 2),
        ("name: [a\nmodel: b]: c\n", "expected ',' or ']'", 2),
    ],
)
def test_bad_yaml_is_a_fault_with_its_line(
    text: str, problem: str, line: int, write: Write
) -> None:
    file = write(text)
    fault = only_fault(file)
    assert fault.rule.startswith("is no valid YAML: ")
    assert problem in fault.rule
    assert fault.location == f"{file}:{line}"


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_without_sections_is_refused(text: str, write: Write) -> None:
    assert only_fault(write(text)).rule == "must be a mapping of sections"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"name: \xff\xfe")
    assert only_fault(file).rule.startswith("cannot be read")


def test_a_key_given_twice_is_refused_with_both_lines(write: Write) -> None:
    file = write(SWEEP + "train:\n  steps: 5\n")
    fault = only_fault(file)
    assert (fault.field, fault.rule) == ("train", f"is given twice, first at {file}:16")
    assert fault.location == f"{file}:19"


@pytest.mark.parametrize("missing", ["quickstrat", "quickstart.yml", "./sweeps/quick_start.yaml"])
def test_a_missing_file_names_the_nearest_bundled_sweep(missing: str) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(missing, [])
    assert str(caught.value) == (
        f"SWEEP: no such file or bundled sweep: {missing}; did you mean quickstart?"
    )


def test_a_missing_file_like_no_other_lists_the_bundled_sweeps() -> None:
    with pytest.raises(UserError, match=r"bundled sweeps: .*quickstart"):
        load_sweep("zzzzzz", [])


def test_variables_are_filled_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "7b")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("TRIALS", raising=False)
    file = write(
        edited(
            model__name="org/model-${SIZE}",
            budget__trials="${TRIALS:-3}",
            wandb={"project": "${EMPTY:-other}", "tags": ["${SIZE}", "a${EMPTY}b"]},
        )
    )
    config = load(file)
    assert config.model.name == "org/model-7b"
    assert config.budget.trials == 3
    assert config.wandb.project == "other"
    assert config.wandb.tags == ("7b", "ab")


def test_unset_variables_are_faults_with_line(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    file = write(SWEEP.replace("rows.jsonl", "${NOPE}/a").replace("[b]", "[b, '${NOPE}']"))
    first, second = faults(file)
    assert (first.field, first.location) == ("data.path", f"{file}:4")
    assert (second.field, second.location) == ("eval.retention.1", f"{file}:7")
    assert first.rule == "needs the environment variable NOPE, which is not set"
    assert first.remedy == "export NOPE=..."


def test_a_variable_that_is_overridden_need_not_be_set(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    file = write(SWEEP.replace("some/model", "'${NOPE}'"))
    assert load(file, "model.name=org/b").model.name == "org/b"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=50", "train.steps", 50),
        ("train.warmup=1e-1", "train.warmup", 0.1),
        ("search.lora.rank=[2, 32]", "search.lora.rank", (2, 32)),
        ("search.lora.rank=16", "search.lora.rank", (16,)),
        ("search.lora.rank.1=64", "search.lora.rank", (4, 64)),
        ("search.lora.learning_rate=1e-4", "search.lora.learning_rate", (1e-4,)),
        ("search.lora.learning_rate=[1e-4, 3e-4]", "search.lora.learning_rate", (1e-4, 3e-4)),
        (
            "search.lora.learning_rate={low: 1e-5, high: 1}",
            "search.lora.learning_rate",
            LogUniform(low=1e-5, high=1),
        ),
        ("search.full.learning_rate=2.5e-5", "search.full.learning_rate", (2.5e-5,)),
        ("train.steps=null", "train.steps", None),
        ("train.steps=", "train.steps", None),
        ("train.save_weights=false", "train.save_weights", False),
        ("wandb.project=1e-4", "wandb.project", "1e-4"),
        ("data.prompt='{{ a }} = '", "data.prompt", "{{ a }} = "),
        ("sampler=random", "sampler", "random"),
    ],
)
def test_overrides_replace_values(override: str, path: str, value: Any, write: Write) -> None:
    found: Any = load(write(), override)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_later_overrides_win_and_make_missing_sections(write: Write) -> None:
    config = load(write(), "budget.trials=3", "budget.trials=4", "resources.full.workers=2")
    assert config.budget.trials == 4
    assert config.resources.full.workers == 2


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("train.steps", "must read KEY=VALUE, got 'train.steps'"),
        ("=5", "must read KEY=VALUE, got '=5'"),
        ("train..steps=5", "must read KEY=VALUE, got 'train..steps=5'"),
        ("name.x=5", "name.x: name holds a value, not a section"),
        (
            "objectives.2.mode=min",
            "objectives.2.mode: objectives is a list of 2, it has no 2",
        ),
        ("objectives.x=1", "objectives.x: objectives is a list of 2, it has no x"),
    ],
)
def test_an_override_that_cannot_be_put_in_is_a_fault(
    override: str, rule: str, write: Write
) -> None:
    fault = only_fault(write(), override)
    assert (fault.field, fault.rule) == ("--set", rule)


def test_an_override_that_is_no_yaml_is_a_fault(write: Write) -> None:
    fault = only_fault(write(), "data.prompt=[INST] {{ a }}")
    assert fault.rule.startswith("data.prompt=[INST] {{ a }}: the value is no valid YAML")
    assert fault.remedy == "quote it"


@pytest.mark.parametrize("override", ["train.steps=x", "search.lora.rank=[0]", "trian.steps=3"])
def test_a_fault_of_an_override_points_at_it_rather_than_at_a_line(
    override: str, write: Write
) -> None:
    assert only_fault(write(), override).location == f"--set {override}"


def test_all_bad_overrides_are_reported(write: Write) -> None:
    assert len(faults(write(), "a", "b", "name.c=1")) == 3


def test_paths_are_relative_to_the_sweep_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "folder" / "base").mkdir(parents=True)
    text = edited(
        model__name="base",
        data__path="../rows.jsonl",
        data__validation_path="held_out.parquet",
        eval__task_dirs=["tasks", "package://tune/sweeps"],
        eval__general_text="general.txt",
        eval__ood=[{"task": "c", "data_files": {"test": "test.jsonl"}}, "d"],
        deepspeed={"config_file": "zero.json"},
    )
    config = load(write(text, "folder/tiny.yaml"))
    folder = tmp_path / "folder"
    assert config.model.name == str(folder / "base")
    assert Path(config.data.path).resolve() == tmp_path / "rows.jsonl"
    assert config.data.validation_path == str(folder / "held_out.parquet")
    assert config.eval.task_dirs == (str(folder / "tasks"), "package://tune/sweeps")
    assert config.eval.general_text == str(folder / "general.txt")
    assert config.eval.ood[0].data_files == {"test": str(folder / "test.jsonl")}
    assert config.deepspeed.config_file == str(folder / "zero.json")


def test_names_on_a_hub_stay_as_they_are(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "gpt2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")  # a folder of that name here does not matter
    config = load(write(edited(model__name="gpt2", data__path="org/rows")))
    assert config.model.name == "gpt2"
    assert config.data.path == "org/rows"


def test_home_and_absolute_paths_stay(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-someone")
    config = load(write(edited(data__path="~/a.jsonl", model__name="/models/b")))
    assert config.data.path == "/home/of-someone/a.jsonl"
    assert config.model.name == "/models/b"


def test_paths_from_the_command_line_and_variables_are_relative_to_where_it_runs(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("QA", "questions")
    file = write(edited(data__path="${QA}/a.jsonl"))
    config = load(file, "eval.task_dirs=[mine]", "data={path: '${QA}/b.jsonl'}")
    assert load(file).data.path == str(here / "questions/a.jsonl")
    assert config.data.path == str(here / "questions/b.jsonl")
    assert config.eval.task_dirs == (str(here / "mine"),)


def test_a_sweep_extends_another(write: Write, tmp_path: Path) -> None:
    write(SWEEP, "below/base.yaml")
    file = write(
        "extends: below/base.yaml\n"
        "name: child\n"
        "search:\n"
        "  lora:\n"
        "    rank: [16]\n"
        "  full: {learning_rate: [1.0e-5]}\n"
    )
    config = load(file)
    assert config.name == "child"
    assert config.search.lora is not None
    assert config.search.lora.rank == (16,)
    assert config.search.lora.alpha_ratio == (2.0,)
    assert config.search.methods == ("lora", "full")
    assert config.data.path == str(tmp_path / "below/rows.jsonl")


def test_a_fault_names_the_file_of_the_two_that_it_is_in(write: Write) -> None:
    base = write(SWEEP.replace("batch_size: 16", "batch_size: x"), "base.yaml")
    file = write("extends: base.yaml\nsearch:\n  lora:\n    rank: [0]\n")
    assert {fault.field: fault.location for fault in faults(file)} == {
        "train.batch_size": f"{base}:17",
        "search.lora.rank.0": f"{file}:4",
    }


def test_extending_in_a_circle_or_what_is_not_there_is_a_fault(write: Write) -> None:
    write("extends: two.yaml\n", "one.yaml")
    two = write("extends: one.yaml\n", "two.yaml")
    assert only_fault(two).rule.startswith("goes in a circle")
    missing = write("extends: quickstrat\n")
    assert str(only_fault(missing)) == (
        "extends: no such file or bundled sweep: quickstrat; did you mean quickstart?"
    )


@pytest.mark.parametrize("name", bundled_sweeps())
def test_every_bundled_sweep_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QA_DIR", "/data/qa")
    config = load_sweep(name, [])
    assert config.name == name
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config


def test_bundled_sweeps_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "quickstart" in bundled_sweeps()
    assert load_sweep("quickstart", []).name == "quickstart"
