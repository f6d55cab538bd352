"""What the README has its reader copy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from analysis.results.sample_size import FEWEST_OF_RANK, items_needed, level_of_rank
from trainables.config import Constraint, TrainConfig
from trainables.data.chats import Example
from trainables.data.rows import row_examples
from trainables.process.memory_estimate import estimate
from trainables.storage.locations import resolve
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.search.space import first_points
from tune.search.trial_ids import largest_trial

PROJECT = Path(__file__).parents[3]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_example_is_a_sweep(tmp_path: Path) -> None:
    file = tmp_path / "my_sweep.yaml"
    file.write_text(EXAMPLE)
    assert load_sweep(str(file), []).name == "my_sweep"


def test_its_trials_fit_the_gpus_that_it_says(tmp_path: Path) -> None:
    file = tmp_path / "my_sweep.yaml"
    file.write_text(EXAMPLE)
    sweep = load_sweep(str(file), [])
    paper = load_sweep("paper_llama31_8b", []).model
    assert (paper.name, paper.dtype) == (sweep.model.name, sweep.model.dtype)
    [(gpus, gib)] = re.findall(r"# full fine-tuning: (\d+) GPUs of (\d+) GiB", EXAMPLE)
    assert int(gpus) == sweep.resources.full.workers
    for method in sweep.search.methods:
        trial = largest_trial(sweep, method)
        assert paper.shape is not None
        assert estimate(paper.shape, trial).peak <= int(gib) << 30


@pytest.mark.parametrize("sweep", ["my_sweep", "paper_llama31_8b", "paper_qwen25_7b"])
def test_its_sweeps_have_items_and_repeats_enough_to_show_that_a_rank_suffices(
    sweep: str, tmp_path: Path
) -> None:
    file = tmp_path / "my_sweep.yaml"
    file.write_text(EXAMPLE)
    config = load_sweep(str(file) if sweep == "my_sweep" else sweep, [])
    [task] = config.eval.in_domain
    assert config.search.lora
    assert config.confirm
    ranks, methods = len(config.search.lora.rank), len(config.search.methods)
    assert config.budget.trials >= ranks * methods * FEWEST_OF_RANK
    # As many trials of each rank as if LoRA were searched alone.
    level = level_of_rank(ranks, config.budget.trials // ranks)
    assert items_needed([1], [1.0], level=level) <= (config.eval.task_limit(task) or 0)


def test_the_methods_are_searched_one_by_one_on_one_base(tmp_path: Path) -> None:
    file = tmp_path / "my_sweep.yaml"
    file.write_text(EXAMPLE)
    [row] = [line for line in README.splitlines() if "search the methods one by one" in line]
    commands = re.findall(r"`(\.\.\. --set .*?)`", row)
    lora, full = (load_sweep(str(file), re.findall(r"--set (\S+)", line)) for line in commands)
    assert (lora.search.methods, full.search.methods) == (("lora",), ("full",))
    assert len({"my_sweep", lora.name, full.name}) == 3
    # What a base's evaluation is looked up by.
    for part in ("model", "data", "eval", "seed"):
        assert getattr(lora, part) == getattr(full, part)


def test_what_it_has_tried_first_is_in_its_search(tmp_path: Path) -> None:
    file = tmp_path / "my_sweep.yaml"
    file.write_text(EXAMPLE)
    [override] = re.findall(r'--set "(search\.first=.*?)"', README)
    [point] = first_points(load_sweep(str(file), [override]).search)
    assert point == {"method": "lora", "lora/rank": 16, "lora/learning_rate": 2e-4}


def test_rows_of_alpaca_are_learned_as_it_says(tmp_path: Path) -> None:
    file = tmp_path / "my_sweep.yaml"
    [prompt] = re.findall(r'`(prompt: ".*?")`', README)
    [completion] = re.findall(r'`(completion: "\{\{ output \}\}")`', README)
    file.write_text(f"extends: quickstart\ndata: {{{prompt}, {completion}}}\n")
    rows = [{"instruction": "Add.", "input": of, "output": "3"} for of in ("1 + 2", "")]
    assert row_examples(load_sweep(str(file), []).data, rows) == [
        [Example("Add.\n1 + 2\nResponse:\n", "3")],
        [Example("Add.\nResponse:\n", "3")],
    ]


def test_what_it_says_to_mind_is_so() -> None:
    assert not TrainConfig().gradient_checkpointing
    assert TrainConfig(schedule="constant").warmup > 0


def test_what_makes_the_order_of_trials_certain_is_a_key() -> None:
    [key] = re.findall(r"`(\S+): 1` makes (?:it|the order) certain", README)
    assert load_sweep("quickstart", [f"{key}=1"]).resources.max_concurrent == 1


def test_a_task_over_files_of_one_s_own_fits_into_it(tmp_path: Path) -> None:
    file = tmp_path / "my_sweep.yaml"
    file.write_text(EXAMPLE)
    pieces = re.findall(r"`(?:in_domain|task_dirs): (\[.*?\])`", README)
    overrides = [f"eval.in_domain={pieces[0]}", f"eval.task_dirs={pieces[1]}"]
    suite = load_sweep(str(file), overrides).eval
    [folder], [task] = map(list, (suite.task_dirs, suite.in_domain))
    assert yaml.safe_load((Path(resolve(folder)) / f"{task.task}.yaml").read_text())
    [own] = yaml.safe_load(EXAMPLE)["eval"]["in_domain"]
    assert (task.label, task.limit) == (own["task"], own["limit"])


def test_every_section_s_keys_are_where_it_says() -> None:
    named = re.findall(r"(?:tune|trainables)/\S+", EXAMPLE.splitlines()[0])
    # A constraint is written as one line, without keys.
    defined = {model.__module__ for model in _sections(SweepConfig) - {Constraint}}
    files = {f"{name.replace('.', '/')}.py" for name in defined}
    assert len(files) > 3
    assert all(any(file.startswith(place) for place in named) for file in files)


def _sections(annotation: Any) -> set[type[BaseModel]]:
    """The models in a type, and those in their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values()
        return {annotation}.union(*(_sections(field.annotation) for field in fields))
    return set().union(*map(_sections, get_args(annotation)))


def test_its_ratios_are_those_of_the_files_that_it_names() -> None:
    rows = re.findall(
        r"\| (\d+) of (\d+) steps \|[^|]*\| ([^|]*) "
        r"\| (\S+) to (\S+) \| (\S+) to (\S+) \(\[figures\]\((\S+?)\)\) \|",
        README,
    )
    assert len(rows) == 3
    for trials, steps, machine, *ends, file in rows:
        content = json.loads((PROJECT / file).read_text(encoding="utf-8"))
        assert content["machine"]["name"].replace("(R)", "").startswith(machine), file
        assert [content["options"][key] for key in ("trials", "steps")] == [int(trials), int(steps)]
        found = [part["ratios"] for part in content.values() if "ratios" in part]
        measured = [
            f"{end(ratios[f'slots / {other}'] for ratios in found):.1f}"
            for other in ("stock", "loop")
            for end in (min, max)
        ]
        assert ends == measured, file


def test_its_idle_shares_are_those_measured() -> None:
    sizes = json.loads((PROJECT / "tests/benchmarks/scale.json").read_text())["sizes"]
    largest = [size for size in sizes if (size["gpus"], size["finished"]) == (512, 10_000)]
    idle = {size["minutes"]: size["idle_share"] for size in largest if size["sampler"] == "tpe"}
    text = " ".join(README.split())
    assert f"with 20-minute trials the GPUs idle {100 * idle[20]:.1f} % of the time" in text
    assert f"TPE saturates the driver's core and they idle {100 * idle[5]:.0f} %" in text
