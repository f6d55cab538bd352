"""`cluster.yaml` and `clusters/`: what Ray, the clouds and Kubernetes make of them, offline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

sys.path.insert(0, str(Path(__file__).parents[3] / "clusters"))

from autoscaler_limits import worker_types

PROJECT = Path(__file__).parents[3]
CLUSTERS = PROJECT / "clusters"
LAUNCHED = {
    "aws": PROJECT / "cluster.yaml",
    "gcp": CLUSTERS / "gcp.yaml",
    "local": CLUSTERS / "onprem.yaml",
}


def read(provider: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(LAUNCHED[provider].read_text())
    return config


@pytest.mark.parametrize("provider", LAUNCHED)
class TestWhatRayUpTakes:
    def test_ray_s_own_schema_and_preparation_accept_it(self, provider: str) -> None:
        config = prepare_config(read(provider))
        validate_config(config)
        assert config["provider"]["type"] == provider
        assert config["head_node_type"] in config["available_node_types"]
        (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
        assert "--dashboard-host=127.0.0.1" in start  # nothing encrypts it


@pytest.mark.parametrize("provider", ["aws", "gcp", "local"])
def test_every_node_asks_for_the_token_of_who_brought_it_up(provider: str, tmp_path: Path) -> None:
    config = read(provider)
    (target,) = (remote for remote in config["file_mounts"] if remote.endswith("/.ray/auth_token"))
    assert target.startswith(("~/", "/home/ubuntu/"))
    assert config["file_mounts"][target] == "~/.ray/auth_token"
    export = config["setup_commands"][-1]
    for _ in range(2):  # as at each `ray up`
        subprocess.run(["bash", "-c", export], env={"HOME": str(tmp_path)}, check=True)
    bashrc = (tmp_path / ".bashrc").read_text()
    said = subprocess.run(
        ["bash", "-c", f"{bashrc}echo $RAY_AUTH_MODE $PATH"],
        env={"HOME": str(tmp_path), "PATH": "/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"token {tmp_path}/venv/bin:/bin\n"


class TestKubeRay:
    @pytest.fixture(scope="class")
    def documents(self) -> dict[str, dict[str, Any]]:
        text = (CLUSTERS / "kuberay.yaml").read_text()
        return {document["kind"]: document for document in yaml.safe_load_all(text)}

    def test_ray_s_autoscaler_reads_it(self, documents: dict[str, dict[str, Any]]) -> None:
        cluster = documents["RayCluster"]
        cluster = cluster | {"metadata": cluster["metadata"] | {"namespace": "default"}}
        config = _derive_autoscaling_config_from_ray_cr(cluster)
        assert [each["resources"]["GPU"] for each in worker_types(config)] == [1]
        types = config["available_node_types"]
        head = types["headgroup"]["resources"]
        assert (head["CPU"], head["driver"]) == (0, 1)
        assert types["gpu"]["max_workers"] > types["gpu"]["min_workers"] == 0

    def test_kubernetes_knows_every_field_of_the_pods_and_the_volume(
        self, documents: dict[str, dict[str, Any]]
    ) -> None:
        spec = documents["RayCluster"]["spec"]
        pods = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
        ]
        version = kubernetes_validate.latest_version()
        for resource in (documents["PersistentVolumeClaim"], *pods):
            kubernetes_validate.validate(resource, version, strict=True)
        pods[0]["spec"]["contianers"] = []
        with pytest.raises(Exception, match="contianers"):
            kubernetes_validate.validate(pods[0], version, strict=True)
