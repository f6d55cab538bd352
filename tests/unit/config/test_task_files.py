"""Which files a task is made of, in folders as users and the harness have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tune.config.task_files import task_files

if TYPE_CHECKING:
    from pathlib import Path

TASK = "task: a\n"
CALLS_B = f"{TASK}f: !function b.c"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"a.yaml": TASK, "notes.md": TASK, "train.py": ""}, {"a.yaml"}),
        ({"sub/a.yaml": f"{TASK}include: ../_b", "_b": ""}, {"sub/a.yaml", "_b"}),
        ({"a.yaml": CALLS_B, "b.py": "", "c.py": ""}, {"a.yaml", "b.py"}),
        (
            {"a.yaml": f"{TASK}data_files: 'set*.jsonl'", "set-1.jsonl": ""},
            {"a.yaml", "set-1.jsonl"},
        ),
        ({"a.yaml": f"{TASK}test_split: data", "data.py": "", "sweep.yaml": "name: s"}, {"a.yaml"}),
        (
            {
                "a.yaml": CALLS_B,
                "b.py": "import d, e\nfrom .f.g import h\nopen('i.txt')\nx = '**'",
                **dict.fromkeys(("d.py", "e.py", "f/g.py", "i.txt", "j.txt"), ""),
            },
            {"a.yaml", "b.py", "d.py", "e.py", "f/g.py", "i.txt"},
        ),
        ({"a.yaml": TASK, "sweeps/s/sweep.json": "", "sweeps/s/b.yaml": TASK}, {"a.yaml"}),
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
