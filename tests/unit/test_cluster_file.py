"""`cluster.yaml` is what `ray up` takes."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config


def test_cluster_file_passes_ray_s_own_schema() -> None:
    file = Path(__file__).resolve().parents[2] / "cluster.yaml"
    config = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]
