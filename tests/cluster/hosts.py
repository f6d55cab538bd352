"""Hosts made of network namespaces, and the on-premises cluster file for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import yaml

PROJECT = Path(__file__).resolve().parents[2]
_SCRIPT = Path(__file__).with_name("hosts.sh")
_TOOLS = ("ip", "unshare", "rsync", "ssh", "/usr/sbin/sshd")
WORKERS = ("w1", "w2")
# Ray finds a host lost after a minute; here it shall do so after seconds.
_FAST = (
    "RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000 "
    "RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3"
)


def why_not() -> str | None:
    """What keeps this machine from playing several hosts, if anything."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (iproute2, openssh-server, rsync)"
    command = ["unshare", "--net", "--mount", "--pid", "--fork"]
    command += ["ip", "link", "add", "type", "veth"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


class Hosts:
    """A head and two workers that run until the end of `hosts`."""

    def __init__(self, lab: Path, network: str) -> None:
        self._lab = lab
        self._network = network
        self._name = f"r{os.getpid() % 10**6}"
        self.shared = lab / "shared"
        self.shared.mkdir()
        self.cluster_file = lab / "cluster.yaml"

    def run(self, *arguments: str) -> None:
        """`hosts.sh` with these arguments."""
        seen = {str(self.shared), sys.prefix, sys.base_prefix}
        environment = {
            **os.environ,
            "LAB": str(self._lab),
            "NET": self._network,
            "NAME": self._name,
            "SHARED": " ".join(seen),
        }
        subprocess.run([str(_SCRIPT), *arguments], env=environment, check=True, timeout=60)

    def up(self) -> None:
        """Start the hosts, each with the virtual environment where the cluster file has it."""
        for host in ("head", *WORKERS):
            home = self._lab / "hosts" / host / "root"
            home.mkdir(parents=True)
            (home / "venv").symlink_to(sys.prefix)
        # As Ray leaves one that is started here alone, with which its head alone would ask for it.
        left = self._lab / "hosts" / "head" / "root" / ".ray" / "auth_token"
        left.parent.mkdir()
        left.write_text(uuid4().hex)
        self.run("up")
        self.cluster_file.write_text(self._cluster_yaml())

    def _cluster_yaml(self) -> str:
        """`clusters/onprem.yaml` with these hosts in it, less what needs the internet."""
        text = (PROJECT / "clusters" / "onprem.yaml").read_text()
        text = text.replace("/shared", str(self.shared))
        # Two cores play three hosts: one CPU a worker, and none for trials on the head.
        text = text.replace("ray start --head", f"{_FAST} ray start --num-cpus=0 --head")
        text = text.replace("ray start --address", "ray start --num-cpus=1 --address")
        text = text.replace("--port=6379", "--port=6379 --object-store-memory=100000000")
        config = yaml.safe_load(text)
        config["cluster_name"] = self._name
        config["provider"] |= {
            "head_ip": f"{self._network}.10",
            "worker_ips": [f"{self._network}.11", f"{self._network}.12"],
        }
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self._lab / "key")}
        token = self._lab / "auth_token"  # the user's; the head has another one
        token.write_text(uuid4().hex)
        config["file_mounts"] = {
            "/root/forgetting-sweeps": str(PROJECT),
            "/root/.ray/auth_token": str(token),
        }
        config["setup_commands"] = [c for c in config["setup_commands"] if "uv" not in c]
        return yaml.safe_dump(config)

    def ray(self, *arguments: str, seconds: float = 120) -> str:
        """A command of Ray's on the cluster file, as a user types it; its output."""
        done = subprocess.run(
            self.ray_command(*arguments),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        output = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, output
        return output

    def ray_command(self, name: str, *arguments: str) -> list[str]:
        """The words of that command."""
        ray = str(Path(sys.prefix) / "bin" / "ray")
        # Without its cache, which would outlive this cluster in the user's own folder.
        cache = [] if name == "down" else ["--no-config-cache"]
        return [ray, name, *cache, str(self.cluster_file), *arguments]

    def environment(self) -> dict[str, str]:
        """Of the user's machine, where nothing about Ray is set but where its files lie."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return kept | {"RAY_TMPDIR": str(self._lab), "RAY_USAGE_STATS_ENABLED": "0"}

    def ssh(self, host: str, command: str) -> None:
        """A command on a host, over ssh."""
        address = {"head": 10, "w1": 11, "w2": 12}[host]
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        key = str(self._lab / "key")
        target = f"root@{self._network}.{address}"
        subprocess.run(
            ["ssh", "-q", "-n", "-i", key, *options, target, command],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def processes(self, host: str) -> dict[int, str]:
        """Command lines by process id, seen from outside: a host that is cut off shows them too."""
        done = subprocess.run(
            ["ip", "netns", "pids", f"{self._name}-{host}"],
            capture_output=True,
            text=True,
            check=True,
        )
        found = {}
        for pid in map(int, done.stdout.split()):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found[pid] = b" ".join(words).decode(errors="replace").strip()
        return found

    def on_host(self, host: str, script: str) -> None:
        """Run Python on a host without the network, as a process that was cut off there would."""
        pid = next(pid for pid, line in self.processes(host).items() if "sshd" in line)
        subprocess.run(
            ["nsenter", "-t", str(pid), "-m", "-n", "-p", sys.executable, "-c", script],
            check=True,
            timeout=60,
        )


@contextmanager
def hosts() -> Iterator[Hosts]:
    """A head and two workers; all of it is gone at the end."""
    lab = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
    made = Hosts(lab, f"10.77.{os.getpid() % 250}")
    try:
        made.up()
        yield made
    finally:
        made.run("down")
        shutil.rmtree(lab, ignore_errors=True)
