"""`cluster.yaml` and `clusters/`: what Ray, the clouds and Kubernetes make of them, offline."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from metadata_service import MetadataService, metadata_service
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config, with_head_node_ip

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


def pins() -> dict[str, str]:
    lines = (CLUSTERS / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("provider", LAUNCHED)
class TestWhatRayUpTakes:
    def test_ray_s_own_schema_and_preparation_accept_it(self, provider: str) -> None:
        config = prepare_config(read(provider))
        validate_config(config)
        assert config["provider"]["type"] == provider
        assert config["head_node_type"] in config["available_node_types"]
        (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
        assert "--dashboard-host=127.0.0.1" in start  # nothing encrypts it

    @pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
    def test_what_git_keeps_is_sent_and_nothing_that_it_ignores(
        self, provider: str, tmp_path: Path
    ) -> None:
        kept = ("pyproject.toml", "tune/sweeps/quickstart.yaml", "clusters/constraints.txt")
        ignored = ("sweeps/quickstart/sweep.json", ".venv/bin/python", "tune/__pycache__/a.pyc")
        (tmp_path / ".gitignore").write_text((PROJECT / ".gitignore").read_text())
        for name in (*kept, *ignored, ".git/HEAD"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        config = read(provider)  # the options as Ray's command runner makes them of it
        options = [f"--exclude={pattern}" for pattern in config["rsync_exclude"]]
        options += [f"--filter=dir-merge,- {file}" for file in config["rsync_filter"]]
        listing = ["rsync", "-rn", "--out-format=%n", *options, f"{tmp_path}/", f"{tmp_path}/copy"]
        done = subprocess.run(listing, capture_output=True, text=True, check=True)
        sent = {name for name in done.stdout.split() if not name.endswith("/")}
        assert sent == {*kept, ".gitignore"}

    def test_nothing_secret_is_in_it(self, provider: str) -> None:
        text = LAUNCHED[provider].read_text()
        assert not re.search(r"AKIA|aws_secret|hf_[A-Za-z0-9]{8}|PRIVATE KEY", text)


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_the_driver_is_not_preemptible_and_alone_on_its_node(provider: str) -> None:
    config = read(provider)
    head = config["available_node_types"][config["head_node_type"]]
    assert "spot" not in str(head["node_config"]).lower()
    assert head["resources"] == {"CPU": 0, "driver": 1}


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_each_spot_type_has_a_twin_on_demand(provider: str) -> None:
    types = read(provider)["available_node_types"]
    spot = [name for name in types if name.endswith("_spot")]
    assert spot
    for name in spot:
        config, twin = types[name], types[name.removesuffix("_spot") + "_on_demand"]
        assert "SPOT" in str(config["node_config"]).upper()
        assert "SPOT" not in str(twin["node_config"]).upper()
        assert config["resources"] == twin["resources"]
        assert config["max_workers"] >= twin["max_workers"]


class Host:
    """A worker's home, with a `ray` that writes down how it is called, and its cloud's metadata."""

    def __init__(self, home: Path, service: MetadataService) -> None:
        self._home, self._service = home, service
        (home / "forgetting-sweeps").symlink_to(PROJECT)
        programs = home / "venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "python3").symlink_to(Path(sys.executable).resolve())
        self._write("python", f'{programs}/python3 "$@" --metadata {service.url} --every 0.05')
        self._write("ray", 'echo "$RAY_ADDRESS" "$@" >> ~/calls')
        (home / ".bashrc").write_text("export PATH=$HOME/venv/bin:$PATH\n")

    def _write(self, name: str, command: str) -> None:
        program = self._home / "venv" / "bin" / name
        program.write_text(f"#!/bin/sh\n{command}\n")
        program.chmod(0o755)

    def run(self, commands: list[str]) -> int:
        """The exit code of the first that fails, else 0; each in a terminal of its own, as Ray."""
        for command in with_head_node_ip(commands, "10.0.0.1"):
            process, terminal = pty.fork()
            if process == 0:
                shell = " ".join(_with_interactive(command))
                os.execve("/bin/sh", ["sh", "-c", shell], {"HOME": str(self._home)})  # noqa: S606
            with suppress(OSError):  # it has been closed at the other end
                while os.read(terminal, 1024):
                    pass
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            os.close(terminal)
            if code != 0:
                return code
        return 0

    def calls(self, kind: str) -> list[str]:
        """How `ray` was called with a command."""
        file = self._home / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if f" {kind} " in f" {line} "]

    def is_watched(self) -> bool:
        with (self._home / "drain_on_notice.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


@pytest.mark.parametrize("provider", ["aws", "gcp"])
@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock and bash, as on the nodes")
def test_workers_drain_on_their_cloud_s_notice_and_stay_away(provider: str, tmp_path: Path) -> None:
    commands = read(provider)["worker_start_ray_commands"]
    with metadata_service() as service:
        host = Host(tmp_path, service)
        assert host.run(commands) == 0
        assert host.run(commands) == 0  # as the autoscaler does where a node was lost from sight
        service.wait_until_asked(5)
        assert host.is_watched()
        assert (len(host.calls("start")), host.calls("drain-node")) == (2, [])
        service.announce(120)
        deadline = time.monotonic() + 30
        while host.is_watched():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (drain,) = host.calls("drain-node")
        assert drain.startswith("10.0.0.1:6379 drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
        assert int(drain.split()[-1]) > 60  # seconds
        assert host.run(commands) != 0
        assert len(host.calls("start")) == 2


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


def test_all_workers_of_an_on_prem_cluster_are_used() -> None:
    config = read("local")
    config["provider"]["worker_ips"] += ["192.168.0.13"]  # whoever adds one changes nothing else
    prepared = prepare_config(config)
    (hosts,) = prepared["available_node_types"].values()
    assert prepared["max_workers"] == hosts["min_workers"] == hosts["max_workers"] == 3
    start = config["head_start_ray_commands"][-1]
    assert "RAY_enable_autoscaler_v2=0" in start  # v2 leaves one of them idle


def test_google_knows_every_field_of_a_node() -> None:
    from google.auth.credentials import AnonymousCredentials
    from googleapiclient.discovery import build

    compute = build("compute", "v1", credentials=AnonymousCredentials(), static_discovery=True)
    schemas = compute._rootDesc["schemas"]

    def unknown(value: Any, schema: dict[str, Any], path: str) -> list[str]:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        if schema["type"] == "array":
            return [fault for item in value for fault in unknown(item, schema["items"], path)]
        if schema["type"] != "object":
            known = schema.get("enum", [value])
            return [] if value in known else [f"{path}: {value}"]
        properties = schema.get("properties", {})
        faults = [f"{path}.{key}" for key in value if key not in properties]
        for key in value.keys() & properties.keys():
            faults += unknown(value[key], properties[key], f"{path}.{key}")
        return faults

    instance = {"$ref": "Instance"}
    for name, node_type in read("gcp")["available_node_types"].items():
        assert unknown(node_type["node_config"], instance, name) == []
    assert unknown({"scheduling": {"provisioningModel": "SP0T", "x": 1}}, instance, "n") != []


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

    def test_the_job_runs_on_the_cluster_and_writes_where_all_pods_see_it(
        self, documents: dict[str, dict[str, Any]]
    ) -> None:
        job, cluster = documents["RayJob"]["spec"], documents["RayCluster"]
        assert job["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
        assert "backoffLimit" not in job  # KubeRay refuses it beside a cluster selector
        claim = documents["PersistentVolumeClaim"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        spec = cluster["spec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (volume,) = [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
            mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
            assert f"--output-dir {mounts[volume]}/" in job["entrypoint"]

    def test_images_and_the_cluster_are_of_the_pinned_ray(
        self, documents: dict[str, dict[str, Any]]
    ) -> None:
        base = re.search(r"^FROM (\S+)$", (CLUSTERS / "Dockerfile").read_text(), re.M)
        assert base is not None
        assert base[1] == f"rayproject/ray:{pins()['ray']}-py311-gpu"
        spec = documents["RayCluster"]["spec"]
        assert spec["rayVersion"] == pins()["ray"]
        groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
        images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
        assert len(images) == 1


def test_the_pins_are_within_the_ranges_that_the_project_asks_for() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["aws"], *extras["gcp"], *extras["gguf"]]
    for text in asked:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), text
