"""From a sweep file to a configuration, or to faults that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_files import SWEEP, edited, faults, only_fault

from trainables.errors import UserError
from tune.config.search_config import LogUniform
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import bundled_sweeps, load_sweep

Write = Any
MODULES = "search.lora.target_modules"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str = SWEEP, name: str = "tiny.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def load(file: Path, *overrides: str) -> SweepConfig:
    return load_sweep(str(file), list(overrides))


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


def test_what_cannot_be_filled_in_does_not_hide_other_faults(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    file = write(edited(search__lora__rank="${NOPE}", search__lora__dropout=2))
    assert [fault.field for fault in faults(file, "name.x=5")] == [
        "--set",
        "search.lora.rank",
        "search.lora.dropout.0",
    ]


def test_a_batch_size_that_every_method_replaces_need_not_fit(write: Write) -> None:
    searched = {"search__lora__batch_size": [32, 64], "train__micro_batch_size": 32}
    assert load(write(edited(**searched))).train.batch_size == 16
    file = write(edited(**searched, search__full={"learning_rate": [1e-5]}))
    assert only_fault(file).field == "train.batch_size"


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("name: a\nmodel: {name: b\n", "expected ',' or '}'", 3),
        ("name: a\n\tmodel: b\n", "cannot start any token", 2),
        ("name: [a\nmodel: b]: c\n", "expected ',' or ']'", 2),
        ("data:\n  prompt: {{ question }}\n", "found unhashable key", 2),
        ("data:\n  prompt: Question: what?\n", "mapping values are not allowed here", 2),
        ("data:\n  prompt: *Question*\n", "expected alphabetic or numeric character", 2),
    ],
)
def test_bad_yaml_is_a_fault_with_its_line(
    text: str, problem: str, line: int, write: Write
) -> None:
    file = write(text)
    fault = only_fault(file)
    assert fault.rule.startswith("is no valid YAML: ")
    assert problem in fault.rule
    assert fault.remedy.startswith("indent by spaces, and put texts with any of { ")
    assert fault.location == f"{file}:{line}"


def test_a_character_may_be_escaped_in_two_halves_as_in_json(write: Write) -> None:
    smile = r'"\ud83d\ude00 {{ q }}"'
    file = write(SWEEP.replace("rows.jsonl\n", f"rows.jsonl\n  prompt: {smile}\n"))
    assert load(file).data.prompt == load(file, f"data.prompt={smile}").data.prompt == "😀 {{ q }}"


def test_a_time_is_a_text(write: Write) -> None:
    """YAML counts it to the base of 60: hours of 1:30 would be 90."""
    file = write(f"{SWEEP}budget: {{hours: 1:30}}\n")
    assert str(only_fault(file)).startswith("budget.hours: must be a number, got '1:30'")
    file.write_text(SWEEP)
    assert only_fault(file, "budget.hours=1:30.5").field == "budget.hours"
    config = load_sweep(str(file), ["wandb.tags=[12:30, 190:20:30.15]"])
    assert config.wandb.tags == ("12:30", "190:20:30.15")


def test_a_date_is_a_text(write: Write) -> None:
    file = write(edited(model__chat_template_args={}))
    dates = "{date_string: 2024-07-26, tagged: !!timestamp 2024-02-30}"
    config = load_sweep(str(file), ["name=2024-02-30", f"model.chat_template_args={dates}"])
    assert config.name == "2024-02-30"
    told = {"date_string": "2024-07-26", "tagged": "2024-02-30"}
    assert config.model.chat_template_args == told


def test_a_number_that_there_is_not_is_a_fault(write: Write) -> None:
    assert only_fault(write("name: 0x_\n")).rule.startswith("is no valid YAML: invalid literal")
    rule = "name=0x_: the value is no valid YAML: invalid literal"
    assert only_fault(write(), "name=0x_").rule.startswith(rule)


def test_yaml_nested_too_deep_is_a_fault(write: Write) -> None:
    deep, told = "[" * 5000, "is no valid YAML: maximum recursion depth exceeded"
    assert told in only_fault(write(f"name: {deep}\n")).rule
    assert told in only_fault(write(), f"tags={deep}").rule


@pytest.mark.parametrize(("text", "is_told"), [("a: *b\n", True), ("a: \0\n", False)])
def test_quotes_are_advised_where_they_help(text: str, is_told: bool, write: Write) -> None:
    assert ("in quotes" in only_fault(write(text)).remedy) == is_told


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


def test_a_section_given_twice_is_told_once_whatever_both_hold(write: Write) -> None:
    file = write(SWEEP + "train:\n  batch_size: 5\n")
    assert only_fault(file).field == "train"


@pytest.mark.parametrize("missing", ["quickstrat", "quickstart.yml", "./sweeps/quick_start.yaml"])
def test_a_missing_file_names_the_nearest_bundled_sweep(missing: str) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(missing, [])
    assert str(caught.value) == (
        f"SWEEP: no such file or bundled sweep: {missing}; did you mean quickstart?"
    )


@pytest.mark.parametrize("missing", ["my_sweep", "my_swep.yaml"])
def test_a_missing_file_names_the_nearest_beside_it(
    missing: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(SWEEP, "own/my_sweep.yaml")
    monkeypatch.chdir(file.parents[1])
    assert only_fault(Path("own") / missing).remedy == "did you mean own/my_sweep.yaml?"


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
            wandb={"project": "${EMPTY:-other}", "tags": ["${SIZE:-1b}", "a${EMPTY}b"]},
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
        (f"{MODULES}=[[all-linear]]", MODULES, ("all-linear",)),
        (f"{MODULES}=[[v, q]]", MODULES, (("q", "v"),)),
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
        ("extends=quickstart", "cannot set extends, got 'extends=quickstart'"),
        ("objectives.x=1", "objectives.x: objectives is a list of 2, it has no x"),
        (
            "budget={trials: 3, trials: 30}",
            "budget={trials: 3, trials: 30}: budget.trials is given twice",
        ),
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
        data__replay={"path": "more.jsonl", "share": 0.5},
        eval__task_dirs=["tasks", "package://tune/sweeps"],
        model__chat_template="chat.jinja",
        eval__general_text="general.txt",
        eval__ood=[{"task": "c", "data_files": {"test": "test.jsonl"}}, "d"],
        deepspeed={"config_file": "zero.json"},
    )
    folder = tmp_path / "folder"
    (folder / "zero.json").write_text("{}")
    config = load(write(text, "folder/tiny.yaml"))
    assert config.model.name == str(folder / "base")
    assert config.data.path == str(tmp_path / "rows.jsonl")  # as it is told, where there is none
    assert config.data.validation_path == str(folder / "held_out.parquet")
    assert config.data.replay.path == str(folder / "more.jsonl")
    assert config.eval.task_dirs == (str(folder / "tasks"), "package://tune/sweeps")
    assert config.model.chat_template == str(folder / "chat.jinja")
    assert config.eval.general_text == str(folder / "general.txt")
    assert config.eval.ood[0].data_files == {"test": str(folder / "test.jsonl")}
    assert config.deepspeed.config_file == str(folder / "zero.json")


def test_a_file_has_one_path_from_wherever_the_command_runs(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same sweep file, named from another folder, would make another sweep."""
    file = write(edited(data__path="../rows.jsonl"), "folder/tiny.yaml")
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    named_otherwise = load(Path("../folder/tiny.yaml"), "eval.task_dirs=[../folder]")
    assert named_otherwise.data.path == load(file).data.path == str(rows)
    assert named_otherwise.eval.task_dirs == (str(tmp_path / "folder"),)


def test_what_is_above_a_link_is_where_the_link_leads(write: Write, tmp_path: Path) -> None:
    write(edited(data__path="../rows.jsonl"), "far/folder/tiny.yaml")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "folder")
    for folder, text in ((tmp_path, "of another"), (tmp_path / "far", "its own")):
        (folder / "rows.jsonl").write_text(text)
    config = load(tmp_path / "link" / "tiny.yaml")
    assert Path(config.data.path).read_text() == "its own"
    (tmp_path / "far" / "rows.jsonl").unlink()
    assert load(tmp_path / "link" / "tiny.yaml").data.path == f"{tmp_path}/link/../rows.jsonl"


def test_a_deepspeed_file_becomes_part_of_the_configuration(write: Write, tmp_path: Path) -> None:
    """So its content is recorded, and other nodes need not see the file."""
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 1}}')
    path = write(edited(deepspeed={"config_file": "zero.json"}))
    assert load(path).deepspeed.config == {"zero_optimization": {"stage": 1}}
    file.write_text("[1]")
    assert only_fault(path).rule == f"must hold a JSON object, got a list: {file}"
    file.write_text("{")
    malformed = only_fault(path)
    assert malformed.rule.startswith(f"is no JSON: {file} (Expecting property name")
    remedy = "write DeepSpeed's JSON, or the same settings under deepspeed.config"
    assert malformed.remedy == remedy
    file.unlink()
    missing = only_fault(path)
    assert missing.rule == f"cannot be read: [Errno 2] No such file or directory: '{file}'"
    assert missing.remedy.startswith("paths are relative to the sweep file's folder")
    both = write(edited(deepspeed={"config_file": "zero.json", "config": {}}))
    with pytest.raises(UserError, match=r"cannot be given beside deepspeed\.config"):
        load(both)


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


def test_null_takes_back_a_section_of_the_file_that_is_extended(write: Write) -> None:
    write(SWEEP, "base.yaml")
    methods = "search:\n  lora: null\n  full: {learning_rate: 1.0e-5}\n"
    assert load(write(f"extends: base.yaml\n{methods}")).search.methods == ("full",)


def test_null_takes_back_a_template_of_the_file_that_is_extended(write: Write) -> None:
    templates = '  prompt: "{{ q }}"\n  completion: "{{ a }}"\n'
    rows = "  path: rows.jsonl\n"
    write(SWEEP.replace(rows, rows + templates), "base.yaml")
    chats = "extends: base.yaml\ndata:\n  messages: messages\n"
    assert only_fault(write(chats)).remedy == "null takes back what an extended file gives"
    data = load(write(f"{chats}  prompt: null\n  completion: null\n")).data
    assert (data.messages, data.prompt) == ("messages", "{{ prompt }}")


def test_a_fault_names_the_file_of_the_two_that_it_is_in(write: Write) -> None:
    base = write(SWEEP.replace("batch_size: 16", "batch_size: x"), "base.yaml")
    file = write("extends: base.yaml\nsearch:\n  lora:\n    rank: [0]\n")
    assert {fault.field: fault.location for fault in faults(file)} == {
        "train.batch_size": f"{base}:17",
        "search.lora.rank.0": f"{file}:4",
    }


def test_a_value_that_replaces_a_list_is_looked_for_in_its_own_file(write: Write) -> None:
    write(SWEEP, "base.yaml")
    file = write("extends: base.yaml\nsearch:\n  lora:\n    rank: 0\n")
    fault = only_fault(file)
    assert (fault.field, fault.location) == ("search.lora.rank.0", f"{file}:4")


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(str(tmp_path), [])
    told = f"SWEEP: must be a YAML file, is a folder: {tmp_path}; bundled sweeps: "
    assert str(caught.value).startswith(told)


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
