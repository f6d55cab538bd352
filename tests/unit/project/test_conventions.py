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
from typing import Any

import pytest

PROJECT = Path(__file__).parents[3]
PACKAGES = ("tune", "trainables", "analysis")
HEAVY = ("torch", "transformers", "ray", "optuna", "wandb", "datasets", "pandas", "pyarrow")
SOURCES = sorted(file for package in PACKAGES for file in (PROJECT / package).rglob("*.py"))
TEXTS = {file: file.read_text(encoding="utf-8") for file in SOURCES}
TREES = {file: ast.parse(text) for file, text in TEXTS.items()}


def place(file: Path) -> str:
    return str(file.relative_to(PROJECT))


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, Any]]:
    for file, tree in TREES.items():
        yield from ((file, node) for node in ast.walk(tree) if isinstance(node, kinds))


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


def test_files_are_short() -> None:
    lengths = {place(file): len(text.splitlines()) for file, text in TEXTS.items()}
    assert {file: length for file, length in lengths.items() if length >= 400} == {}


def test_each_file_has_a_name_of_its_own() -> None:
    shared = ("__init__.py", "__main__.py", "base.py")
    names = [file.name for file in SOURCES if file.name not in shared]
    assert {name for name in names if names.count(name) > 1} == set()


def test_words_are_those_that_a_colleague_would_say() -> None:
    odd = re.compile(r"\b(told|tells?\s+of|lets?\s+go|may\s+be\s+none|whoever)\b", re.IGNORECASE)
    found = {place(file): odd.findall(text.replace("_", " ")) for file, text in TEXTS.items()}
    assert {file: words for file, words in found.items() if words} == {}


def test_functions_have_names_that_say_what_they_return() -> None:
    riddle = re.compile(r"_?(of|faults_of)_")
    functions = [
        (place(file), node.name) for file, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    ]
    assert len(functions) > 1000
    assert [each for each in functions if riddle.match(each[1])] == []


def test_private_names_of_libraries_are_in_compat() -> None:
    ours = {node.name for _, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)}
    ours |= {node.id for _, node in nodes(ast.Name) if isinstance(node.ctx, ast.Store)}
    ours |= {node.attr for _, node in nodes(ast.Attribute) if isinstance(node.ctx, ast.Store)}
    ours |= {"_exit"}  # os._exit is documented
    named = [
        *((file, node.attr) for file, node in nodes(ast.Attribute)),
        *((file, name) for file, node in nodes(ast.ImportFrom) for name in imported(node)),
        *((file, name) for file, node in nodes(ast.Import) for name in imported(node)),
    ]
    private = {
        (place(file), name)
        for file, name in named
        if name.startswith("_") and not name.endswith("__") and name not in ours
    }
    assert any(file.startswith("trainables/compat/") for file, _ in private)
    assert {each for each in private if not each[0].startswith("trainables/compat/")} == set()


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Every part of the names that a statement imports."""
    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
    return [part for name in names for part in name.split(".")]


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings in the code, but for docstrings."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    documentation = {id(node.value) for node in statements}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documentation:
            yield node.lineno, node.value


def test_every_metric_named_in_the_code_is_known() -> None:
    from trainables.metric_keys import METRICS

    spaces = {key.split("/")[0] for key in METRICS}
    written = re.compile(rf"({'|'.join(sorted(spaces))})/[a-z_0-9]+")
    named = {
        (place(file), line, text)
        for file, tree in TREES.items()
        for line, text in literals(tree)
        if written.fullmatch(text)
    }
    assert any(file == "trainables/metric_keys.py" for file, _, _ in named)
    assert {each for each in named if each[2] not in METRICS} == set()


def test_only_methods_and_losses_know_their_names() -> None:
    """A new one is a file of its own: what must be known of it, it says itself.

    `key_aliases.py` has the names that other projects give to their keys.
    """
    from trainables.losses import LOSSES
    from trainables.methods import METHODS

    names = {*METHODS.names, *LOSSES.names}
    own = ("trainables/methods/", "trainables/losses/", "tune/config/key_aliases.py")
    found = {
        (place(file), line, text)
        for file, tree in TREES.items()
        for line, text in literals(tree)
        if text in names and not place(file).startswith(own)
    }
    assert found == set()
