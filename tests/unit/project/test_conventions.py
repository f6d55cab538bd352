"""Rules of the project that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
PACKAGES = ("tune", "trainables", "analysis")
HEAVY = ("torch", "transformers", "ray", "optuna", "wandb", "datasets", "pandas", "pyarrow")
SOURCES = sorted(file for package in PACKAGES for file in (PROJECT / package).rglob("*.py"))


def run(*command: str) -> str:
    # Variables of W&B, which loads it to check them, may be the user's, or left by another test.
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, *command], cwd="/", env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", PACKAGES)
def test_no_module_has_the_name_of_one_that_is_installed(folder: str) -> None:
    """A script's own folder comes first on Python's path, where such a module would hide it."""
    ours = {file.stem for file in (PROJECT / folder).iterdir() if file.suffix in ("", ".py")}
    installed = {name for name in packages_distributions() if name not in PACKAGES}
    assert not ours & (sys.stdlib_module_names | installed)


def test_the_command_line_of_the_analysis_loads_nothing_heavy() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from analysis.__main__ import main\n"
        "try: main(['report', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('LOADED', *sys.modules)"
    )
    text, _, loaded = run("-c", code).partition("LOADED")
    assert "SWEEP_DIR" in text
    assert not {*HEAVY, "plotly", "scipy", "matplotlib", "jinja2"} & set(loaded.split())


def test_what_the_driver_takes_of_the_analysis_loads_nothing_heavy() -> None:
    names = [f"analysis.results.{f.stem}" for f in (PROJECT / "analysis/results").glob("*.py")]
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(PROJECT)!r})\n"
        f"for name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "print(*sys.modules)"
    )
    assert not {*HEAVY, "plotly", "scipy", "statsmodels"} & set(run("-c", code).split())


def test_every_argument_of_the_analysis_has_a_help() -> None:
    from argparse import _SubParsersAction

    from analysis.__main__ import _parser

    [commands] = [a for a in _parser()._actions if isinstance(a, _SubParsersAction)]
    bare = [
        (name, action.dest)
        for name, command in commands.choices.items()
        for action in command._actions
        if not action.help
    ]
    assert bare == []


def test_help_loads_nothing_heavy_and_fits_a_terminal() -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['run.py', '--help']; sys.path.insert(0, {str(PROJECT / 'tune')!r})\n"
        "try: runpy.run_path(sys.path[0] + '/run.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('LOADED', *sys.modules)"
    )
    text, _, loaded = run("-c", code).partition("LOADED")
    assert not set(HEAVY) & set(loaded.split())
    lines = text.splitlines()
    assert "--dry-run" in text
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_a_sweep_says_something_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); sys.modules['ray'] = None\n"
        "from tune.cli import main\n"
        f"try: main(['quickstart', '--output-dir', {str(tmp_path)!r}])\n"
        "except ImportError: print('LOADED', *sys.modules)"
    )
    text, _, loaded = run("-c", code).partition("LOADED")
    assert text == "quickstart: starting Ray ...\n"
    assert not set(HEAVY) & set(loaded.split()) - {"ray"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < 400


def literals(file: Path) -> Iterator[tuple[int, str]]:
    """Strings in the code, but for docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
        ):
            yield node.lineno, node.value


def test_every_metric_named_in_the_code_is_known() -> None:
    from trainables.metric_keys import METRICS

    spaces = {key.split("/")[0] for key in METRICS}
    written = re.compile(rf"({'|'.join(sorted(spaces))})/[a-z_0-9]+")
    named = {
        (str(file.relative_to(PROJECT)), line, text)
        for file in SOURCES
        for line, text in literals(file)
        if written.fullmatch(text)
    }
    assert any(file == "trainables/metric_keys.py" for file, _, _ in named)
    assert {place for place in named if place[2] not in METRICS} == set()


def test_the_reader_of_literals_sees_strings_and_not_documentation(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""kl/doc"""\nx = f(\n    "kl/code"\n)\n')
    assert list(literals(file)) == [(3, "kl/code")]
