"""`ray up` for real: three hosts over ssh, one of them cut off in the middle of a trial."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from hosts import WORKERS, Hosts, hosts, why_not

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

TRIALS = 2
# Long enough to be cut off in the middle, with a checkpoint every 20 steps.
SETTINGS = (
    f"budget.trials={TRIALS}",
    "search.full=null",
    "search.lora.rank=[4]",
    "train.steps=200",
    "train.report_every=0.1",
    "train.batch_size=8",
    "train.micro_batch_size=8",
    "eval.in_domain=[target_relay]",
    "eval.retention=[list_max]",
    "eval.ood=[target_longer]",
    "eval.limit=10",
    "eval.kl_prompts=0",
    "eval.general_text=null",
    "data.limit=200",
    "wandb.mode=disabled",
    "resources.max_concurrent=1",
)

# What a trial that lives on behind a cut may do at worst: write all that its attempt writes again,
# and each file anew, as `checkpoint.write` does.
LATE_WRITES = """
import pathlib
attempt = pathlib.Path({attempt!r})
for file in [path for path in attempt.rglob("*") if path.is_file()]:
    file.unlink()
    file.write_bytes(b"written too late")
for folder in ("weights", "items"):
    (attempt / folder).mkdir(exist_ok=True)
    (attempt / folder / "late.json").write_text("written too late")
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Hosts]:
    with hosts() as made:
        yield made


def wait_for(what: str, condition: Callable[[], object], seconds: float = 150) -> None:
    """Return once the condition holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.25)


def raylets(lab: Hosts, *names: str) -> list[str]:
    """Those of the hosts on which Ray runs."""
    return [
        host
        for host in names
        if any("/raylet/raylet " in f"{line} " for line in lab.processes(host).values())
    ]


def trial_host(lab: Hosts, *names: str) -> str | None:
    """The host on which a trial runs now."""
    for host in names:
        if any("ImplicitFunc" in line for line in lab.processes(host).values()):
            return host
    return None


def test_a_sweep_outlives_a_host_that_is_cut_off(lab: Hosts) -> None:
    lab.ray("up", "-y")
    wait_for("both workers are up", lambda: raylets(lab, *WORKERS) == list(WORKERS))

    output = lab.shared / "sweeps"
    settings = " ".join(f"--set '{setting}'" for setting in SETTINGS)
    command = (
        "cd forgetting-sweeps && python tune/run.py quickstart --address auto "
        f"--output-dir {output} {settings}"
    )
    sweep = Ledger(output / "quickstart")
    log = lab.shared / "driver.log"
    with log.open("w") as stream:
        driver = subprocess.Popen(
            lab.ray_command("exec", command), env=lab.environment(), stdout=stream, stderr=stream
        )

    def wait(what: str, condition: Callable[[], object], seconds: float = 150) -> None:
        def holds() -> object:
            assert driver.poll() is None, log.read_text()
            return condition()

        wait_for(what, holds, seconds)

    try:
        first, second = sweep.folder.attempt(0, 1), sweep.folder.attempt(0, 2)
        wait("a checkpoint", lambda: any(first.glob("checkpoints/step_*")), 200)
        lost = trial_host(lab, *WORKERS)
        assert lost is not None
        (other,) = set(WORKERS) - {lost}
        lab.run("cut", lost)
        wait("the trial goes on elsewhere", second.exists)
        reported = sweep.measurements(0)[-1].step
        wait("its next report", lambda: sweep.measurements(0)[-1].step > reported)
        assert trial_host(lab, other) == other
        lab.on_host(lost, LATE_WRITES.format(attempt=str(first)))
        lab.run("heal", lost)
        assert driver.wait(timeout=300) == 0, log.read_text()
    finally:
        driver.kill()

    assert_whole(sweep)
    wait_for("the host is back", lambda: "/2.0 CPU" in lab.ray("exec", "ray status"))

    before = records_of(sweep)
    lab.ray("exec", command)  # the same line again: nothing is left to do, and nothing changes
    assert records_of(sweep) == before

    for host in WORKERS:  # as clusters/README.md has it
        lab.ssh(host, "~/venv/bin/ray stop")
    lab.ray("down", "-y")
    wait_for("no host runs Ray", lambda: not raylets(lab, "head", *WORKERS), 60)


def assert_whole(sweep: Ledger) -> None:
    """The record tells of the attempt that went on, and of nothing written too late."""
    records = sweep.trials()
    ended = [(record.status, record.reason) for record in records]
    assert ended == [(TrialStatus.COMPLETE, None)] * TRIALS
    went_on = records[0]
    assert (went_on.attempt, went_on.failures) == (2, 0)
    steps = [measurement.step for measurement in sweep.measurements(0)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 200
    second = sweep.folder.attempt(0, 2)
    assert went_on.weights_dir == str(second / "weights")
    # It went on from a checkpoint: the first step was trained, and written down, once.
    assert sweep.folder.metrics(0).read_text().count('"step":1,') == 1
    from safetensors import safe_open

    with safe_open(second / "weights" / "adapter_model.safetensors", "numpy") as weights:
        assert len(list(weights.keys())) > 0
    for folder in (sweep.folder.root / "base", second, sweep.folder.attempt(1, 1)):
        for file in folder.rglob("*"):
            assert not file.is_file() or b"written too late" not in file.read_bytes()


def records_of(sweep: Ledger) -> dict[str, bytes]:
    """What the ledger holds of the trials, byte by byte."""
    folder = sweep.folder.trials
    found = [*folder.glob("*/trial.json"), *folder.glob("*/metrics.jsonl")]
    return {str(path): path.read_bytes() for path in found}
