"""Test documents of the evaluation tasks, as lm-evaluation-harness's `custom_dataset`."""

import json
from pathlib import Path

from datasets import Dataset


def read(file: str, **_metadata: object) -> dict[str, Dataset]:
    """The `test` split stored in `file`, a JSON Lines file next to this one.

    Reading it here rather than by `dataset_path: json` depends on no working directory and
    builds no cache. The harness also passes the task's metadata, which is not needed.
    """
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
