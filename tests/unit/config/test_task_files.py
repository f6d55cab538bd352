"""Which files a task is made of, in folders as users and the harness have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tune.config.task_files import task_files, task_named

if TYPE_CHECKING:
    from pathlib import Path

TASK = "task: a\n"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"a.yaml": TASK, "notes.md": TASK, "train.py": ""}, {"a.yaml"}),
        ({"a.yaml": '"task": "a"\n"include": "_shared"\n', "_shared": "{}"}, {"a.yaml", "_shared"}),
        (
            {"a.yaml": f"{TASK}include: [_b, c.yaml]", "_b": "", "c.yaml": ""},
            {"a.yaml", "_b", "c.yaml"},
        ),
        ({"sub/a.yaml": f"{TASK}include: ../_b", "_b": ""}, {"sub/a.yaml", "_b"}),
        ({"a.yaml": f"{TASK}f: !function b.c", "b.py": "", "c.py": ""}, {"a.yaml", "b.py"}),
        (
            {"a.yaml": f"{TASK}f: !function b.c", "b.py": "x = '**'\ny = '.*'", "run.log": ""},
            {"a.yaml", "b.py"},
        ),
        ({"a.yaml": f"{TASK}f: !function b.c.d", "b/c.py": "", "b.py": ""}, {"a.yaml", "b/c.py"}),
        ({"a.yaml": "class: !function b.Task", "b.py": ""}, {"a.yaml", "b.py"}),
        ({"a.yaml": "group: g\ntask: [b]", "b.yaml": "task: b"}, {"a.yaml", "b.yaml"}),
        (
            {"a.yaml": f"{TASK}data_files: {{test: 'my set*.jsonl'}}", "my set 1.jsonl": ""},
            {"a.yaml", "my set 1.jsonl"},
        ),
        (
            {"a.yaml": f"{TASK}dataset_path: data", "data/x.parquet": ""},
            {"a.yaml", "data/x.parquet"},
        ),
        (
            {"a.yaml": f"{TASK}dataset_kwargs: {{data_dir: data}}", "data/x": ""},
            {"a.yaml", "data/x"},
        ),
        ({"a.yaml": f"{TASK}dataset_path: sub/..", "sub/x": "", "b": ""}, {"a.yaml"}),
        ({"a.yaml": f"{TASK}test_split: data", "data/x.parquet": ""}, {"a.yaml"}),
        (
            {
                "a.yaml": f"{TASK}# of sweep.yaml, see README.md\n",
                "sweep.yaml": "name: s",
                "README.md": "",
            },
            {"a.yaml"},
        ),
        ({"a.yaml": f"{TASK}doc_to_text: Answer from context:", "context.py": ""}, {"a.yaml"}),
        (
            {
                "a.yaml": f"{TASK}f: !function b.c",
                "b.py": "import d, e\nfrom .f.g import h\nopen('i.txt')",
                "d.py": "",
                "e.py": "",
                "f/g.py": "",
                "i.txt": "",
                "j.txt": "",
            },
            {"a.yaml", "b.py", "d.py", "e.py", "f/g.py", "i.txt"},
        ),
        (
            {"a.yaml": f"{TASK}f: !function b.c", "b.py": "from . import d", "d.py": ""},
            {"a.yaml", "b.py", "d.py"},
        ),
        ({"a.yaml": f"{TASK}f: !function b.c", "b.py": "def :", "d.py": ""}, {"a.yaml", "b.py"}),
        ({"a.yaml": f"{TASK}: [", "b.py": ""}, {"a.yaml"}),
        ({"a.yaml": TASK, "venv/pyvenv.cfg": "", "venv/lib/b.yaml": TASK}, {"a.yaml"}),
        ({"a.yaml": TASK, "sweeps/s/sweep.json": "", "sweeps/s/b.yaml": TASK}, {"a.yaml"}),
        ({"a.yaml": TASK, ".b/c.yaml": TASK, ".d.yaml": TASK}, {"a.yaml"}),
    ],
)
def test_a_file_counts_if_a_task_is_made_of_it(
    files: dict[str, str], count: set[str], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    assert {file.relative_to(tmp_path).as_posix() for file in task_files(tmp_path)} == count


def test_files_elsewhere_do_not_count(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    (tasks / "a.yaml").write_text(
        f"{TASK}data_files: [../rows.jsonl, {tmp_path}/rows.jsonl, /etc/*]"
    )
    assert task_files(tasks) == [tasks / "a.yaml"]


def test_a_task_is_found_beside_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TASK)
    (tmp_path / "notes.yaml").write_text("about: task a\nsince: 2024-02-30\n")
    (tmp_path / "group.yaml").write_text("group: g\ntask: [a]\n")
    assert task_named("a", [tmp_path]) == {"task": "a"}


def test_a_file_that_cannot_be_read_is_none_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TASK)
    (tmp_path / "b.yaml").symlink_to("/proc/self/mem")  # whose first byte nobody may read
    assert task_files(tmp_path) == [tmp_path / "a.yaml"]
    assert task_named("a", [tmp_path]) == {"task": "a"}
