"""Checks before anything runs that need no model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import GAIN, LOSS, base_record, sweep_config
from faults import faults

from trainables.config import ModelShape
from trainables.errors import UserError
from trainables.storage.locations import is_local, resolve
from tune.config.preflight import check_files
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.config.sweep_metrics import check_metrics
from tune.config.training_warnings import (
    held_out_warnings,
    item_warnings,
    training_warnings,
)

BASE = base_record(metrics={"in_domain/a/acc": 0.5, LOSS: 0.5})


def objective(metric: str) -> SweepConfig:
    mode = "max" if metric == "retention/ratio_mean" else "min"
    return sweep_config(objectives=[{"metric": metric, "mode": mode}])


@pytest.mark.parametrize("metric", ["in_domain/a/acc", "forgetting/mean", "train/loss"])
def test_metrics_of_the_base_and_of_training_may_be_objectives(metric: str) -> None:
    check_metrics(objective(metric), BASE)


@pytest.mark.parametrize("metric", ["in_domain/a/f1", "retention/ratio_mean", "forgetting/b"])
def test_metrics_that_the_base_has_not_are_refused(metric: str) -> None:
    """A task at chance has no retention ratio, which the base's evaluation shows."""
    (fault,) = faults(check_metrics, objective(metric), BASE)
    assert (fault.field, fault.rule) == ("objectives.0.metric", f"nothing logs {metric}")
    assert "in_domain/a/acc" in fault.remedy


def test_what_trials_are_compared_by_before_their_end_must_be_logged() -> None:
    """Else no trial would be stopped, and nothing be said."""
    weights = {"in_domain/a/acc": 1, "in_domain/a/acc_nrom": 1}
    config = sweep_config(early_stopping={"metrics": weights})
    base = base_record(metrics={"in_domain/a/acc": 0.5, GAIN: 0.5, LOSS: 0.5})
    (fault,) = faults(check_metrics, config, base)
    assert (fault.field, fault.rule) == (
        "early_stopping.metrics",
        "nothing logs in_domain/a/acc_nrom",
    )


@pytest.mark.parametrize(
    ("samples", "searched", "told"),
    [
        (16, None, []),
        (15, None, ["train.batch_size is 16, and there is no more to train on than 15 samples"]),
        (1, None, ["train.batch_size is 16, and there is no more to train on than 1 sample"]),
        (15, [8, 12], ["train.batch_size is 16, and there is no more to train on than 15 samples"]),
        (
            12,
            [8, 16, 32],
            [
                "search.lora.batch_size is 16 and 32, and there is no more to train on than 12 sam",
                "train.batch_size is 16, and there is no more to train on than 12 samples",
            ],
        ),
    ],
)
def test_batches_of_more_samples_than_there_are_are_told_of(
    samples: int, searched: list[int] | None, told: list[str]
) -> None:
    lora = {"rank": 8, "alpha": 8, "learning_rate": 1e-3, "batch_size": searched}
    search = {"lora": lora, "full": {"learning_rate": 1e-5}}
    lines = [*training_warnings(sweep_config(search=search), samples)]
    assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told
    again = ": each optimizer step takes some more than once; set it to"
    assert all(line.endswith(f"{again} {samples} or less") for line in lines)


@pytest.mark.parametrize(
    ("every", "lora", "stopping", "methods"),
    [
        (0.25, {}, {}, []),
        (9, {}, {}, []),  # 9 and 10
        (10, {}, {}, ["lora", "full"]),
        (10, {"epochs": [1, 2]}, {}, ["full"]),
        (10, {"batch_size": [8, 16]}, {}, ["full"]),
        (5, {}, {"first_rung": 0.5}, []),
        (5, {}, {"first_rung": 0.6}, ["lora", "full"]),
        (0.25, {}, {"first_rung": 0.75}, []),
        (0.3, {}, {"first_rung": 0.9}, []),
        (0.5, {}, {"first_rung": 0.6}, ["lora", "full"]),
        (0.5, {}, {"first_rung": 0.6, "metrics": {"train/loss": -1}}, []),
        (10, {}, None, []),
        (10, {}, {"metrics": {"train/loss": -1}}, []),
    ],
)
def test_evaluations_that_come_too_late_to_stop_a_trial_early_are_told_of(
    every: float, lora: dict[str, list[int]], stopping: dict[str, float] | None, methods: list[str]
) -> None:
    of_lora = {"rank": 8, "alpha": 8, "learning_rate": 1e-3, **lora}
    config = sweep_config(
        search={"lora": of_lora, "full": {"learning_rate": 1e-5}},
        train={"report_every": every},
        early_stopping=stopping,
    )
    lines = [*training_warnings(config, 160)]  # 10 steps
    told = "train.report_every is {:g}, and {} trials have at most 10 steps: early_stopping ends "
    starts = [told.format(every, method) for method in methods]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


@pytest.mark.parametrize(
    ("data", "is_told"),
    [
        ({"validation_path": "held.jsonl", "validation_fraction": 0.1}, True),
        ({"validation_path": "held.jsonl", "validation_fraction": 0}, False),
        ({"validation_path": "held.jsonl"}, False),
        ({"validation_path": None, "validation_fraction": 0.1}, False),
    ],
)
def test_a_share_held_out_beside_a_file_of_what_is_held_out_is_told_of(
    data: dict[str, Any], is_told: bool
) -> None:
    config = sweep_config(data={"path": "rows.jsonl", **data})
    told = (
        "data.validation_fraction is 0.1, which has no effect beside data.validation_path: leave "
        "one of them out"
    )
    assert [*training_warnings(config, None)] == [told] * is_told


LENGTH = "train.epochs is {}, which has no effect beside train.steps: leave one of them out"


@pytest.mark.parametrize(
    ("train", "searched", "told"),
    [
        ({"epochs": 3}, {}, []),
        ({"steps": 9}, {}, []),
        ({"epochs": 3, "steps": None}, {}, []),
        ({"epochs": 3, "steps": 9}, {}, ["3.0"]),
        ({"epochs": 1, "steps": 9}, {}, ["1.0"]),
        ({"epochs": 3, "steps": 9}, {"lora": {"epochs": [1, 2]}}, ["3.0"]),  # not of full
        ({"epochs": 3, "steps": 9}, {"lora": {"epochs": [1, 2]}, "full": {"epochs": 2}}, []),
    ],
)
def test_epochs_beside_steps_are_told_to_have_no_effect(
    train: dict[str, int], searched: dict[str, dict[str, Any]], told: list[str]
) -> None:
    search = {
        "lora": {"rank": 8, "alpha": 8, "learning_rate": 1e-3, **searched.get("lora", {})},
        "full": {"learning_rate": 1e-5, **searched.get("full", {})},
    }
    config = sweep_config(search=search, train=train)
    lines = [LENGTH.format(epochs) for epochs in told]
    assert [*training_warnings(config, None)] == [*training_warnings(config, 160)] == lines


@pytest.mark.parametrize(
    ("chats", "is_told"),
    [
        ({}, True),
        ({"data": {"path": "rows.jsonl", "chat_template": True}}, False),
        ({"data": {"path": "rows.jsonl", "messages": "turns"}}, False),
        (
            {
                "data": {
                    "path": "rows.jsonl",
                    "replay": {"path": "others.jsonl", "messages": "turns", "share": 0.1},
                }
            },
            False,
        ),
        ({"eval": {"in_domain": ["a"], "retention": ["b"], "chat_template": True}}, False),
    ],
)
def test_variables_of_a_chat_template_that_nothing_takes_are_told_of(
    chats: dict[str, Any], is_told: bool
) -> None:
    model = {"name": "some/model", "chat_template_args": {"enable_thinking": False}}
    told = (
        "model.chat_template_args is {enable_thinking: false}, which has no effect, as neither "
        "data nor tasks take the chat template: set data.chat_template and eval.chat_template to "
        "true, or leave it out"
    )
    assert [*training_warnings(sweep_config(model=model, **chats), None)] == [told] * is_told
    texts = sweep_config(model=model, data={"path": "rows.jsonl", "text": "text"})
    [of_texts] = training_warnings(texts, None)
    assert "chat template: set eval.chat_template to true, or" in of_texts
    assert not [*training_warnings(sweep_config(**chats), None)]


@pytest.mark.parametrize(
    ("ranks", "trials", "items", "needed"),
    [
        ([4, 8, 16], 12, [200], 312),  # ceil(z² / 0.02), z of 1 - 0.05 / 2 / 4
        ([4, 8, 16], 12, [312], None),
        ([4, 8, 16], 12, [100, 100], 312),
        ([4, 8, 16], 12, [300, 100], 624),  # of which each of the second weighs 3 times as much
        ([4, 8, 16], 11, [200], None),  # too few of each rank, whatever they are asked
        ([4, 8], 12, [200], None),
        ([4, 8, 16], 12, [], None),
        ([8, 16, 32, 64, 128], 20, [200], 374),
    ],
)
def test_fewer_items_than_can_show_that_a_rank_suffices_are_told_of(
    ranks: list[int], trials: int, items: list[int], needed: int | None
) -> None:
    lora = {"rank": ranks, "alpha_ratio": 2, "learning_rate": 1e-4}
    full = {"learning_rate": 1e-5}
    of_task = {"metric": "acc", "filter": "none", "value": 0.5, "stderr": None, "chance": 0.0}
    scores = {
        f"{role}_{i}": {"role": role, "choices": None, "items": n, **of_task}
        for role, sizes in {"in_domain": items, "retention": [9]}.items()
        for i, n in enumerate(sizes)
    }
    base = base_record(scores=scores)
    told = (
        f"eval.in_domain has {sum(items)} items, too few to show to within 2 points that a rank "
        f"suffices: at least {needed} are needed, even if ranks differ in none; raise its limit, "
        "or add items"
    )
    for search, planned in (({"lora": lora}, trials), ({"lora": lora, "full": full}, 2 * trials)):
        lines = [*item_warnings(sweep_config(search=search), base, planned)]
        assert lines == [told] * (needed is not None)
    assert not [*item_warnings(sweep_config(search={"full": full}), base, 99)]


UNREADABLE = "/" + "x" * 300
"""A path that the system refuses to look at, as it does in a folder that one may not enter."""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.path", f"{UNREADABLE}.jsonl"),
        ("data.validation_path", f"{UNREADABLE}.jsonl"),
        ("model.name", UNREADABLE),
        ("model.chat_template", UNREADABLE),
        ("eval.general_text", UNREADABLE),
        ("eval.task_dirs.0", UNREADABLE),
        (
            "eval.in_domain.b.data_files.test",
            f"[{{task: list_max, name: b, data_files: {{test: {UNREADABLE}}}}}]",
        ),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_told_as_such(
    field: str, value: str, tmp_path: Path
) -> None:
    key = "eval.in_domain" if "data_files" in field else field
    (fault,) = faults(check_files, load_sweep("quickstart", [f"{key}={value}"]), tmp_path)
    assert (fault.field, fault.rule[:36]) == (field, "cannot be read (File name too long):")


def test_a_sweep_file_that_cannot_be_looked_at_is_told_as_such() -> None:
    with pytest.raises(UserError, match=r"SWEEP: cannot be read \(File name too long\): /xxx"):
        load_sweep(f"{UNREADABLE}.yaml", [])


@pytest.mark.parametrize("key", ["data.path", "model.name"])
def test_the_home_of_nobody_is_no_such_file(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{key}: no such file.*/~of-nobody/x.jsonl"):
        check_files(load_sweep("quickstart", [f"{key}=~of-nobody/x.jsonl"]), tmp_path)
    with pytest.raises(UserError, match="no such file or bundled sweep: ~of-nobody/x"):
        load_sweep("~of-nobody/x", [])


def test_nothing_is_read_from_an_object_store(tmp_path: Path) -> None:
    fields = ["model.name", "data.path", "data.validation_path", "eval.general_text"]
    with pytest.raises(UserError) as caught:
        check_files(load_sweep("quickstart", [f"{f}=s3://bucket/{f}" for f in fields]), tmp_path)
    told = [(fault.field, fault.rule) for fault in caught.value.faults]
    assert told == [(f, f"must be no address, got s3://bucket/{f}") for f in fields]


def test_a_malformed_template_is_told_once_whatever_rows_it_is_for(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "completion": "c"}\n')
    held_out = shutil.copy(rows, tmp_path / "held_out.jsonl")
    data = {"path": str(rows), "validation_path": str(held_out), "prompt": "{{ prompt"}
    with pytest.raises(UserError) as caught:
        check_files(sweep_config(data=data), tmp_path)
    assert [fault.field for fault in caught.value.faults if "template" in fault.rule] == [
        "data.prompt"
    ]


def test_a_validation_loss_needs_rows_that_are_held_out() -> None:
    check_metrics(objective("validation/loss"), base_record(validation_samples=1))
    with pytest.raises(UserError, match="nothing logs validation/loss"):
        check_metrics(objective("validation/loss"), base_record(validation_samples=0))


@pytest.mark.parametrize(
    ("location", "local"),
    [
        ("package://p/f", True),
        ("/a/b", True),
        ("./b", True),
        ("~/b", True),
        ("rows.jsonl", True),
        ("model.gguf", True),
        ("rows.csv", True),
        ("rows.jsonl.gz", True),
        ("gpt2", False),
        ("org/model", False),
        ("tests", False),
    ],
)
def test_what_lies_here_and_what_on_a_hub(location: str, local: bool) -> None:
    assert is_local(location) is local


def test_files_of_packages_are_found_without_running_the_package() -> None:
    assert resolve("package://tune/sweeps/quickstart.yaml").endswith("/tune/sweeps/quickstart.yaml")
    assert resolve("/a/b") == "/a/b"


def test_an_inner_package_is_found_without_running_the_outer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "outer_of_a_test" / "middle" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("raise SystemExit('the code of middle ran')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package://outer_of_a_test.middle.inner/file") == str(inner / "file")


def test_files_of_a_package_in_several_folders_are_found_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("one", "two"):
        file = tmp_path / part / "namespace_of_a_test" / part / "file"
        file.parent.mkdir(parents=True)
        file.touch()
        monkeypatch.syspath_prepend(tmp_path / part)
    for part in ("one", "two"):
        assert Path(resolve(f"package://namespace_of_a_test.{part}/file")).is_file()


@pytest.mark.parametrize("package", ["no_such_package/a", "", "/a", "typing/a"])
def test_a_package_that_is_not_installed_is_named(package: str) -> None:
    """As is a module, which has no files."""
    with pytest.raises(ModuleNotFoundError, match="is not installed"):
        resolve(f"package://{package}")


def test_a_model_without_weights_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(resolve(f"{EMBEDDED}/config.json"), folder)
    config = load_sweep("quickstart", [f"model.name={folder}"])
    (fault,) = faults(check_files, config, tmp_path)
    assert str(fault) == (
        f"model.name: holds no weights, in files such as model.safetensors: {folder}; fetch the "
        "model again, whole"
    )
    (folder / "pytorch_model.bin.index.json").touch()
    assert faults(check_files, config, tmp_path) == [fault]
    (folder / "pytorch_model-00001-of-00002.bin").touch()
    check_files(config, tmp_path)
    (folder / "parts").mkdir()
    (folder / "pytorch_model-00001-of-00002.bin").rename(folder / "parts/model-1.safetensors")
    check_files(config, tmp_path)


def test_4_bits_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_sweep("quickstart", ["model.load_in_4bit=true", "search.full=null"])
    check_files(config, tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(UserError) as caught:
        check_files(config, tmp_path)
    told = "needs bitsandbytes, which is not installed"
    assert [(fault.field, fault.rule) for fault in caught.value.faults] == [
        ("model.load_in_4bit", told)
    ]


LOSS_DECIDES = [{"metric": "validation/loss", "mode": "min"}]


@pytest.mark.parametrize(
    ("held_out", "objectives", "remedy"),
    [
        (1, LOSS_DECIDES, "data.validation_fraction to 0.5, or"),
        (29, LOSS_DECIDES, "data.validation_fraction to 0.35, or"),
        (30, LOSS_DECIDES, None),
        (1, [{"metric": "forgetting/mean", "mode": "min"}], None),
    ],
)
def test_a_validation_loss_of_few_samples_that_decides_is_told_of(
    held_out: int, objectives: list[dict[str, str]], remedy: str | None
) -> None:
    config = sweep_config(objectives=objectives)
    base = base_record(train_samples=58, validation_samples=held_out)
    lines = [*held_out_warnings(config, base)]
    assert [f"set {remedy} name" in line for line in lines] == [True] * (remedy is not None)
    told = f"objectives.0.metric: validation/loss is of no more than {held_out} held-out sample"
    assert all(line.startswith(told) for line in lines)


@pytest.mark.parametrize(
    ("fraction", "held_out", "replayed", "raised"),
    [
        (0.2, 22, 0, 0.26),
        (0.2, 22, 40, 0.26),  # 40 of 134 are the share of 0.3
        (0.05, 6, 47, 0.26),
        (0.5, 25, 0, None),  # to hold out more would leave less to train on
        (0.6, 29, 0, None),
    ],
)
def test_the_share_to_hold_out_is_of_the_rows_that_are_split_and_more_than_is_set(
    fraction: float, held_out: int, replayed: int, raised: float | None
) -> None:
    own = 116 - held_out if fraction < 0.5 else round(held_out / fraction) - held_out
    replay = {"replay": {"path": "general.jsonl", "share": 0.3}} if replayed else {}
    data = {"path": "rows.jsonl", "validation_fraction": fraction, **replay}
    config = sweep_config(data=data, objectives=LOSS_DECIDES)
    if config.data.replay:
        assert config.data.replay.beside(own) == replayed
    base = base_record(train_samples=own + replayed, validation_samples=held_out)
    (line,) = held_out_warnings(config, base)
    remedy = f"set data.validation_fraction to {raised:g}, or " if raised else ""
    assert line.endswith(f"may be chance; {remedy}name a data.validation_path of 30 or more")
    assert raised is None or raised * 116 >= 30 > (raised - 0.01) * 116


def test_what_is_held_out_in_a_file_takes_a_longer_one() -> None:
    data = {"path": "rows.jsonl", "validation_path": "held_out.jsonl"}
    config = sweep_config(data=data, objectives=LOSS_DECIDES)
    (line,) = held_out_warnings(config, base_record(validation_samples=5))
    assert line.endswith("may be chance; name a data.validation_path of 30 or more")
    of_short = {"validation_samples": 5, "skipped_validation_samples": 24}
    assert [*held_out_warnings(config, base_record(**of_short))] == [line]


@pytest.mark.parametrize("data", [{}, {"validation_path": "held_out.jsonl"}])
def test_a_file_that_is_long_enough_but_for_its_long_rows_takes_a_larger_max_length(
    data: dict[str, str],
) -> None:
    config = sweep_config(data={"path": "rows.jsonl"} | data, objectives=LOSS_DECIDES)
    base = base_record(validation_samples=5, skipped_validation_samples=25)
    (line,) = held_out_warnings(config, base)
    assert line.endswith("be chance; raise data.max_length, which 25 more are longer than")


EMBEDDED = "package://trainables/embedded/model"


@pytest.mark.parametrize(
    ("name", "modules", "rules"),
    [
        (EMBEDDED, [["q_proj", "mlp.up_proj", "lm_head"], "all-linear"], []),
        (EMBEDDED, [["q_prj", "v_proj"], ["layers.1.up"]], ["the model has no layers.1.up, q_prj"]),
        ("of-a-hub/model", [["c_attn"]], []),  # which may have such
    ],
)
def test_modules_that_the_models_files_show_it_has_not_are_told_of_before_anything_runs(
    name: str, modules: list[list[str] | str], rules: list[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "completion": "c"}\n')
    lora = {"rank": 8, "alpha": 8, "learning_rate": 1e-3, "target_modules": modules}
    model = {"name": name, "shape": dict.fromkeys(ModelShape.model_fields, 1)}
    config = sweep_config(search={"lora": lora}, model=model, data={"path": str(rows)})
    try:
        check_files(config, tmp_path)
        faults = []
    except UserError as error:
        faults = error.faults
    told = [fault for fault in faults if fault.field == "search.lora.target_modules"]
    assert [fault.rule for fault in told] == rules
    assert all(fault.remedy.startswith("it has q_proj, k_proj, v_proj") for fault in told)
