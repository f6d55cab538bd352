"""What the documents have their readers type, click and copy."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from analysis.__main__ import _parser as analysis_parser
from analysis.results.sample_size import FEWEST_OF_CAPACITY, items_needed, level_of_capacity
from trainables.process.memory_estimate import estimate
from tune.cli import _parser as sweep_parser
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import bundled_sweeps, load_sweep
from tune.search.trial_ids import largest_trial

PROJECT = Path(__file__).parents[3]
DOCUMENTS = [*PROJECT.glob("*.md"), PROJECT / "clusters/README.md", *PROJECT.glob("docs/*.md")]
TEXTS = {file.relative_to(PROJECT).as_posix(): file.read_text("utf-8") for file in DOCUMENTS}
[EXAMPLE] = re.findall(r"```yaml\n(.*?)```", TEXTS["README.md"], re.DOTALL)
BLOCK = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def codes(text: str) -> list[str]:
    """Lines of code blocks, and code within sentences."""
    blocks = "\n".join(BLOCK.findall(text)).replace("\\\n", " ")
    return [*blocks.splitlines(), *re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


CODE = [code for text in TEXTS.values() for code in codes(text)]


def arguments(program: str) -> list[list[str]]:
    """What follows the program in each command; `...` stands for the sweep's command."""
    found = []
    for code in CODE:
        code = re.sub(r"^\.\.\. -", "python tune/run.py my_sweep.yaml -", code)
        before, *after = re.split(rf"python \S*{program} ", code)
        parts = [part.split("'")[0] if "'" in before else part for part in after]
        found += [shlex.split(part, comments=True) for part in parts]
    return found


@pytest.fixture
def my_sweep(tmp_path: Path) -> Path:
    (tmp_path / "my_sweep.yaml").write_text(EXAMPLE)
    return tmp_path / "my_sweep.yaml"


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", TEXTS[name])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        file = (PROJECT / name).parent / path if path else PROJECT / name
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].split()) <= 1000


def test_sweep_commands_load(my_sweep: Path) -> None:
    commands = arguments("tune/run.py")
    assert len(commands) > 10
    for words in commands:
        options = sweep_parser().parse_args(words)
        sweep = options.sweep if options.sweep in bundled_sweeps() else str(my_sweep)
        load_sweep(sweep, options.overrides)


def test_analysis_commands_parse() -> None:
    commands = arguments("-m analysis")
    assert len({words[0] for words in commands}) == 8
    for words in commands:
        analysis_parser().parse_args(words)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9_]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    target = re.compile(r"make (?:\w+=\S+ )?([a-z0-9_]+)")
    named = {found[1] for code in CODE if (found := target.match(code))}
    assert {"run", "test"} <= named <= targets


def test_files_that_are_named_exist() -> None:
    folders = ("tune", "trainables", "analysis", "clusters", "tests")
    files = [file.as_posix() for name in folders for file in (PROJECT / name).rglob("*.py")]
    named = [code for code in CODE if re.fullmatch(r"[\w/]+\.py", code)]
    assert len(named) > 20
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def test_keys_of_sweep_files_exist() -> None:
    key = re.compile(rf"((?:{'|'.join(SweepConfig.model_fields)})(?:\.[a-z_0-9]+)+)(?::.*)?")
    keys = {found[1] for code in CODE if (found := key.fullmatch(code))}
    keys -= {"early_stopping.py", "constraints.txt"}
    assert "resources.max_concurrent" in keys
    assert {key for key in keys if not is_key(SweepConfig, key.split("."))} == set()


def is_key(annotation: Any, names: list[str]) -> bool:
    if not names or get_origin(annotation) is dict:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(names[0])
        return field is not None and is_key(field.annotation, names[1:])
    return any(is_key(part, names) for part in get_args(annotation))


def test_full_trials_fit_the_gpus_that_the_readme_says(my_sweep: Path) -> None:
    sweep = load_sweep(str(my_sweep), [])
    paper = load_sweep("paper_llama31_8b", []).model
    assert (paper.name, paper.dtype) == (sweep.model.name, sweep.model.dtype)
    [(gpus, gib)] = re.findall(r"# full fine-tuning: (\d+) GPUs of (\d+) GiB", EXAMPLE)
    assert int(gpus) == sweep.recipe_resources("full").workers
    assert paper.shape is not None
    for recipe in sweep.search.recipes:
        assert estimate(paper.shape, largest_trial(sweep, recipe)).peak <= int(gib) << 30


@pytest.mark.parametrize("name", ["my_sweep", "paper_llama31_8b", "paper_qwen25_7b"])
def test_sweeps_have_items_enough_to_show_that_a_rank_suffices(name: str, my_sweep: Path) -> None:
    sweep = load_sweep(str(my_sweep) if name == "my_sweep" else name, [])
    [task], trials = sweep.eval.in_domain, sweep.budget.trials
    _, ranks = sweep.search.space("lora").capacities
    assert trials >= len(ranks) * len(sweep.search.recipes) * FEWEST_OF_CAPACITY
    level = level_of_capacity(len(ranks), trials // len(ranks))
    assert items_needed([1], [1.0], level=level) <= (sweep.eval.task_limit(task) or 0)


def test_speed_ups_are_those_of_the_figures() -> None:
    row = r"\|[^|\n]*\| ([\d. to]+) \| ([\d. to]+) \(\[figures\]\(\.\./(\S+?)\)\) \|"
    rows = re.findall(row, TEXTS["docs/speed.md"])
    assert len(rows) == 4
    for *stated, file in rows:
        parts = json.loads((PROJECT / file).read_text("utf-8")).values()
        ratios = [p["ratios"] for p in parts if isinstance(p, dict) and "ratios" in p]
        for text, other in zip(stated, ("stock", "loop"), strict=True):
            values = [r[f"slots / {other}"] for r in ratios]
            assert text.split(" to ") == sorted({f"{f(values):.1f}" for f in (min, max)}), file
