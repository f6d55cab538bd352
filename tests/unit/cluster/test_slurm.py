"""`clusters/slurm.sbatch` on a Slurm and a Ray that write down how they are called."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from ray.scripts.scripts import healthcheck, start

SCRIPT = Path(__file__).parents[3] / "clusters" / "slurm.sbatch"
# Ends as the driver does, with 130 where it was stopped; a slow one once the job has queued up.
DRIVER = """
trap 'until [ -z "$SLOW" ] || [ -s scontrol ]; do sleep 0.05; done; exit 130' TERM
[ "$(wc -l < ray)" = "$SLURM_JOB_NUM_NODES" ] || exit 7
echo "$@" > driver
[ "$RUNS" ] && while true; do sleep 0.05; done
exit 0
"""
PROGRAMS = {
    "srun": """
tasks=$SLURM_NTASKS
while [ "${1#-}" != "$1" ]; do
  echo "$1" >> srun
  case $1 in --ntasks=*) tasks=${1#*=} ;; --nodes=*) nodes=${1#*=} ;; esac
  shift
done
[ "$tasks" = "$nodes" ] || exit 1
for _ in $(seq 2 "$tasks"); do "$@" & done
exec "$@"
""",
    "ray": """
case $1 in
  get-auth-token) echo secret ;;
  health-check) [ -s ray ] ;;
  status) sed 's/.*/ 1 node_1/' ray ;;
  start)
    [ "$3" = --head ] || /bin/sleep 1
    echo "$@" >> ray
    [ "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" = "token secret" ] && exec sleep 30 ;;
esac
""",
    "scontrol": 'echo "$@" >> scontrol',
    "sleep": '[ "$1$SLOW" = 90yes ] && set -- 0; exec /bin/sleep "$1"',
    "python": DRIVER,
}


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")

    def submit(nodes: int, **environment: str) -> subprocess.Popen[bytes]:
        of_slurm = {
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "120045",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_NTASKS": str(nodes),
            "SLURM_CPUS_PER_TASK": "32",
            "SLURMD_NODENAME": "node1",
            "RAY_TMPDIR": str(tmp_path / "sessions"),
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), "my_sweep", "--num-trials", "3"],
            env={"PATH": os.environ["PATH"], **of_slurm, **environment},
            stderr=subprocess.PIPE,
            start_new_session=True,  # Slurm ends all of it with the job
        )

    return submit


def end(job: subprocess.Popen[bytes]) -> int:
    code = job.wait(timeout=30)
    with suppress(ProcessLookupError):  # of one that has started nothing
        os.killpg(job.pid, signal.SIGKILL)
    return code


def test_a_job_starts_a_head_workers_and_the_driver(
    job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    nodes = 3
    assert end(job(nodes)) == 0
    assert stat.S_IMODE((tmp_path / "sessions").stat().st_mode) == 0o700
    sent = (tmp_path / "driver").read_text().split()
    host = os.uname().nodename
    assert sent[:4] == ["tune/run.py", "my_sweep", "--num-trials", "3"]
    assert sent[4:] == ["--address", f"{host}:20045", "--output-dir", f"{tmp_path}/sweeps"]
    written = (tmp_path / "ray").read_text().splitlines()
    started = sorted(written, key=lambda line: "--head" not in line)  # they write side by side
    assert len(started) == nodes
    assert "--head --port=20045 --num-cpus=32" in started[0]
    steps = (tmp_path / "srun").read_text().split()
    assert "--nodelist=node1" in steps
    assert f"--address={host}:20045 --num-cpus=32" in started[1]
    assert {f"--nodes={nodes - 1}", "--exclude=node1"} <= set(steps)
    assert not (tmp_path / "scontrol").exists()
    known = {option for parameter in start.params for option in parameter.opts}
    for line in started:
        options = {part.partition("=")[0] for part in line.split() if part.startswith("--")}
        assert options <= known
    assert "--address" in {option for parameter in healthcheck.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("sent", "is_back", "slow"),
    [(signal.SIGUSR1, True, "yes"), (signal.SIGTERM, False, "")],
    ids=["time is over before trials have stopped", "scancel"],
)
def test_a_job_whose_time_is_over_stops_the_sweep_gently_and_queues_up(
    job: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    sent: signal.Signals,
    is_back: bool,
    slow: str,
) -> None:
    running = job(1, RUNS="yes", SLOW=slow)
    deadline = time.monotonic() + 30
    while not (tmp_path / "driver").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # until the shell waits
    running.send_signal(sent)  # to the batch shell alone
    assert end(running) == 130
    asked = tmp_path / "scontrol"
    lines = asked.read_text().splitlines() if asked.exists() else []
    assert set(lines) == ({"requeue 120045"} if is_back else set())
