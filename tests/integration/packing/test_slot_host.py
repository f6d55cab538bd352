"""A host of slots by itself: who waits, who leaves, and what happens where memory is short."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
import weakref
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
import torch
from chosen_scores import OBJECTIVE

from trainables.config import Objective
from trainables.data.dataset import training_order
from trainables.data.tokenized import trial_inputs
from trainables.errors import EvaluationFailed, OutOfMemory
from trainables.evaluation.evaluator import Evaluator
from trainables.metric_keys import TRAIN_SECONDS
from trainables.packing import engine as engine_module
from trainables.packing import host as host_module
from trainables.packing.engine import SlotEngine
from trainables.packing.host import ERROR, MEASUREMENT, RESULT, UNKNOWN, SlotHost
from trainables.packing.passes import Share
from trainables.packing.slot import Slot
from trainables.storage.storage import open_storage
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter, StopTrial

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


async def follow(host: SlotHost, trial_id: str) -> list[dict[str, Any]]:
    """All events of a trial."""
    events = [await host.next_event(trial_id)]
    while not {RESULT, ERROR, UNKNOWN} & events[-1].keys():
        events.append(await host.next_event(trial_id))
    return events


def host_trials(
    trials: list[TrialConfig], slots: int, host: SlotHost | None = None
) -> list[list[dict[str, Any]]]:
    """Let a host train them, all asked for at once."""

    async def run() -> list[list[dict[str, Any]]]:
        serving = host or SlotHost()
        for trial in trials:
            await serving.join(trial, slots)
        return await asyncio.gather(*(follow(serving, trial.trial_id) for trial in trials))

    return asyncio.run(run())


def test_a_host_whose_slots_are_taken_says_so(make_trial: MakeTrial) -> None:
    trials = [make_trial(trial_id=str(number)) for number in range(3)]

    async def run() -> tuple[list[bool], bool, dict[str, Any]]:
        host = SlotHost()
        taken = [await host.join(trial, 2, may_wait=False) for trial in trials]
        not_here = await host.next_event("2")
        await host.leave("0")
        again = await host.join(trials[2], 2, may_wait=False)
        for events in await asyncio.gather(*(follow(host, name) for name in ("1", "2"))):
            assert RESULT in events[-1]
        assert await host.load() == 0  # which a host that is to stop ends its process by
        return taken, again, not_here

    assert asyncio.run(run()) == ([True, True, False], True, {UNKNOWN: True})


def test_of_trials_that_may_have_ended_a_host_it_takes_one_at_a_time(
    make_trial: MakeTrial,
) -> None:
    first, second, other = (make_trial(trial_id=name) for name in ("first", "second", "other"))

    async def run() -> None:
        host = SlotHost()
        assert await host.join(first, 3, suspect_at=0)
        assert not await host.join(second, 3, suspect_at=0)
        assert await host.join(other, 3)
        assert await host.join(first, 3, suspect_at=1)  # in its next attempt
        for step in (1, 2):  # the first was measured before
            assert (await host.next_event("first"))[MEASUREMENT].step == step
            assert not await host.join(second, 3, suspect_at=0)
        assert MEASUREMENT in await host.next_event("first")  # so the one before is recorded
        assert await host.join(second, 3, suspect_at=0)
        names = ("first", "second", "other")
        for events in await asyncio.gather(*(follow(host, name) for name in names)):
            assert RESULT in events[-1]

    asyncio.run(run())


@pytest.mark.parametrize("work", ["publish_results", "clear_node", "on_this_node"])
def test_the_files_of_others_take_none_of_a_trials_time(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    as_it_is, waits = getattr(host_module, work), []

    def slow(trial: TrialConfig) -> Any:
        if trial.trial_id != "stays":
            waits.append(time.sleep(2))
        return as_it_is(trial)

    monkeypatch.setattr(host_module, work, slow)
    trials = [
        make_trial(trial_id=name, train={"steps": steps, "report_every": steps})
        for name, steps in {"stays": 12, "ends": 2, "joins": 4}.items()
    ]
    *_, last = [e[MEASUREMENT] for e in host_trials(trials, slots=2)[0] if MEASUREMENT in e]
    assert len(waits) == 2
    assert last.metrics[TRAIN_SECONDS] < 2


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [e[MEASUREMENT].metrics["train/loss"] for e in events if MEASUREMENT in e]


def losses_alone(trial: TrialConfig) -> list[float]:
    reporter = ListReporter()
    train_lora(trial, reporter)
    return [m.metrics["train/loss"] for m in reporter.measurements]


def test_a_trial_without_a_free_slot_waits_for_the_next(make_trial: MakeTrial) -> None:
    trials = [make_trial(trial_id=str(number), learning_rate=10**-number) for number in (2, 3, 4)]
    for trial, events in zip(trials, host_trials(trials, slots=2), strict=True):
        assert RESULT in events[-1]
        assert losses(events) == pytest.approx(
            losses_alone(make_trial(learning_rate=trial.learning_rate)), abs=1e-4
        )


def test_a_trial_that_leaves_frees_its_slot(make_trial: MakeTrial) -> None:
    endless = make_trial(trial_id="endless", train={"steps": 10_000, "report_every": 10_000})
    short = make_trial(trial_id="short")

    async def run() -> list[dict[str, Any]]:
        host = SlotHost()
        await host.join(endless, 1)
        await host.next_event("endless")  # it has measured something
        await host.join(short, 1)
        await host.leave("endless")
        return await follow(host, "short")

    assert RESULT in asyncio.run(run())[-1]


def test_an_error_keeps_its_traceback_on_the_way_to_the_trial(make_trial: MakeTrial) -> None:
    nowhere = make_trial(data={"path": "nowhere.jsonl"}, base_dir="/nowhere")
    (events,) = host_trials([nowhere], 1)
    received = pickle.loads(pickle.dumps(events[-1][ERROR]))  # noqa: S301 - as Ray sends it
    (note,) = received.__notes__
    assert note.startswith("Traceback")
    assert "in join" in note


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no more"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")],
    ids=["torch's", "cuBLAS's"],
)
@pytest.mark.parametrize(("rows_that_fit", "ends_well"), [(2, True), (0, False)])
def test_where_memory_is_short_micro_batches_are_halved(
    make_trial: MakeTrial,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
    rows_that_fit: int,
    ends_well: bool,
) -> None:
    """A device that holds so many sequences at a time; a pass that failed leaves nothing on it."""
    whole_pass, held = SlotEngine._pass, []

    def limited(engine: SlotEngine, shares: list[Share]) -> list[float]:
        assert not any(activation() for activation in held)
        if sum(len(share.samples) for share in shares) > rows_that_fit:
            activation = torch.zeros(1)
            held.append(weakref.ref(activation))
            raise type(error)(*error.args)
        return whole_pass(engine, shares)

    monkeypatch.setattr(SlotEngine, "_pass", limited)
    trials = [make_trial(trial_id=str(number), seed=number) for number in range(2)]
    for trial, events in zip(trials, host_trials(trials, slots=2), strict=True):
        if ends_well:
            monkeypatch.setattr(SlotEngine, "_pass", whole_pass)
            expected = losses_alone(make_trial(seed=trial.seed))
            assert losses(events)[-10:] == pytest.approx(expected, abs=1e-4)
        else:
            assert isinstance(events[-1][ERROR], OutOfMemory)
            assert str(events[-1][ERROR]) == (
                "out of memory at micro-batch size 8, then micro-batch size 4, then micro-batch "
                f"size 2, then micro-batch size 1: {error}; try a shorter data.max_length, "
                "train.gradient_checkpointing: true, or larger GPUs"
            )


def test_a_trial_that_finds_no_memory_for_its_slot_waits_for_another_s(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine_module.AdapterGroup

    def limited(adapters: Any, dtype: torch.dtype) -> Any:
        if len(adapters) > 1:
            raise torch.OutOfMemoryError("no more")
        return whole(adapters, dtype)

    monkeypatch.setattr(engine_module, "AdapterGroup", limited)
    trials = [make_trial(trial_id=str(number), seed=number) for number in range(2)]
    both = host_trials(trials, slots=2)
    monkeypatch.undo()
    for trial, events in zip(trials, both, strict=True):
        expected = losses_alone(make_trial(seed=trial.seed))
        assert losses(events) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "ends"])
def test_once_a_neighbour_is_gone_there_is_memory_for_as_many_as_before(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    whole, groups = engine_module.AdapterGroup, []

    def limited(adapters: Any, dtype: torch.dtype) -> Any:
        groups.append(len(adapters))
        if groups == [1, 2]:
            raise torch.OutOfMemoryError("no more")
        return whole(adapters, dtype)

    monkeypatch.setattr(engine_module, "AdapterGroup", limited)
    steps = 10_000 if leaves else 2
    train = {"steps": steps, "report_every": steps}
    trials = [
        make_trial(trial_id="0", train=train),
        make_trial(trial_id="1"),
        make_trial(trial_id="2"),
    ]

    async def run() -> None:
        host = SlotHost()
        for trial in trials:
            await host.join(trial, 2)
        assert MEASUREMENT in await host.next_event("0")
        if leaves:
            await host.leave("0")
        names = ["1", "2"] if leaves else ["0", "1", "2"]
        for events in await asyncio.gather(*(follow(host, name) for name in names)):
            assert RESULT in events[-1]

    asyncio.run(run())
    assert groups[:2] == [1, 2]
    assert 2 in groups[2:]


def test_who_comes_first_has_the_first_slot_and_who_leaves_has_none(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []
    join = SlotEngine.join

    def spied(engine: SlotEngine, trial: TrialConfig, reporter: Any) -> Slot:
        joined.append(trial.trial_id)
        return join(engine, trial, reporter)

    monkeypatch.setattr(SlotEngine, "join", spied)

    async def run() -> None:
        host = SlotHost()
        for name in ("0", "1", "2", "3"):
            trial = make_trial(trial_id=name, train={"steps": 2, "report_every": 2})
            await host.join(trial, 1)
        await host.leave("2")
        await asyncio.gather(*(follow(host, name) for name in ("0", "1", "3")))

    asyncio.run(run())
    assert joined == ["0", "1", "3"]


def test_a_probe_neither_sees_nor_touches_a_trial_of_its_number(make_trial: MakeTrial) -> None:
    train = {"steps": 12, "report_every": 12}
    first = make_trial(train=train)
    host_trials([first], 1, SlotHost(stop_requested=lambda trial: True))  # leaves a checkpoint
    before = {file: file.stat().st_mtime_ns for file in Path(first.output_dir).rglob("*")}
    assert any("checkpoints" in file.parts for file in before)
    largest = make_trial(train=train, lora={"rank": 16}, output_dir=first.output_dir)
    speeds = asyncio.run(SlotHost().probe(largest, 2, 100, 0.0))
    assert [speed.slots for speed in speeds] == [1, 2]
    after = {file: file.stat().st_mtime_ns for file in Path(first.output_dir).rglob("*")}
    assert after == before


def test_a_probe_s_passes_are_padded_as_on_average(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slot has samples of its own, as those that have joined at different times."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "max", "completion": " 4" * (1 + 2 ** (n % 6))} for n in range(60)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"path": str(file), "prompt": "{{ prompt }}", "completion": "{{ completion }}"}
    train = {"steps": 40, "report_every": 40, "batch_size": 2, "micro_batch_size": 1}
    trial = make_trial(train=train, data=data | {"validation_path": None})
    timed: set[tuple[int, tuple[int, ...]]] = set()
    planned = SlotEngine._plan

    def spied(engine: SlotEngine, slots: list[Slot]) -> list[list[Share]]:
        lengths = (len(s["input_ids"]) for slot in slots for s in slot.micro_batch())
        timed.add((len(slots), tuple(lengths)))
        return planned(engine, slots)

    monkeypatch.setattr(SlotEngine, "_plan", spied)
    asyncio.run(SlotHost().probe(trial, 4, 100, 0.0))
    _, tokenized = trial_inputs(trial)
    lengths = [len(sample["input_ids"]) for sample in tokenized.train]
    orders = [training_order(len(lengths), 80, trial.seed + slot) for slot in range(4)]
    for count in (1, 2, 4):
        steps = [tuple(lengths[order[2 * step]] for order in orders[:count]) for step in range(32)]
        longest, all_tokens = fmean(map(max, steps)), fmean(map(sum, steps))
        off = [abs(max(s) / longest - 1) + abs(sum(s) / all_tokens - 1) for s in steps]
        assert (count, steps[off.index(min(off))]) in timed
        assert sum(slots == count for slots, _ in timed) == 1


def test_a_probe_where_not_even_one_slot_fits_finds_nothing(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(engine: SlotEngine, count: int, step: int | None) -> float:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(SlotEngine, "time_pass", nothing)
    host = SlotHost()
    assert asyncio.run(host.probe(make_trial(), 4, 100, 0.0)) == []
    assert host._engine.slots == []


@pytest.fixture
def in_the_store(
    make_trial: MakeTrial,
    base_dir: Path,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[TrialConfig, Callable[[], list[Path]]]:
    """A trial of an object store, and what of its attempts is on this node."""
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path))
    sweep = f"{bucket}/{tmp_path.name}"
    open_storage(sweep).publish(base_dir, "base", last="base.json")
    trial = make_trial(
        train={"steps": 12, "report_every": 4},
        objective=Objective(metric="kl/base_to_tuned", mode="min"),  # best at first
        base_dir=f"{sweep}/base",
        output_dir=f"{sweep}/trials/0000/attempt_1",
    )
    return trial, lambda: list(tmp_path.glob("attempts/*/attempt_*"))


@pytest.mark.parametrize(
    ("asked", "ending", "is_left"),
    [
        (lambda trial: False, RESULT, False),
        (lambda trial: trial == 0, ERROR, False),
        (lambda trial: True, ERROR, True),  # it comes back, and may find its files here
    ],
    ids=["trained", "ended by hand", "all are stopped"],
)
def test_a_trial_that_does_not_come_back_leaves_nothing_on_the_node(
    in_the_store: tuple[TrialConfig, Callable[[], list[Path]]],
    asked: Callable[[int | None], bool],
    ending: str,
    is_left: bool,
) -> None:
    trial, left = in_the_store
    (events,) = host_trials([trial], 1, SlotHost(stop_requested=asked))
    assert bool(left()) is is_left
    if ending == RESULT:
        best = events[-1][RESULT].best_weights_dir
        assert best == f"{trial.output_dir}/best"
        assert "adapter_model.safetensors" in open_storage(best).children("")
    else:
        assert isinstance(events[-1][ERROR], StopTrial)


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "is heard no more"])
def test_nor_does_one_that_nobody_listens_to(
    in_the_store: tuple[TrialConfig, Callable[[], list[Path]]],
    monkeypatch: pytest.MonkeyPatch,
    leaves: bool,
) -> None:
    monkeypatch.setattr("trainables.packing.packed_client._LONGEST_S", 1.0)
    trial, left = in_the_store

    async def run() -> None:
        host = SlotHost()
        await host.join(trial, 1)
        await host.next_event(trial.trial_id)
        assert left()
        if leaves:
            await host.leave(trial.trial_id)
        await host.at_rest()

    asyncio.run(run())
    assert left() == []


def test_a_trial_whose_results_cannot_be_published_ends_with_why_and_the_host_goes_on(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(trial: TrialConfig) -> None:
        if trial.trial_id == "0":
            raise ConnectionError("the store is out")

    monkeypatch.setattr(host_module, "publish_results", publish)
    trials = [make_trial(trial_id=name, train={"steps": 2}) for name in ("0", "1")]
    lost, other = host_trials(trials, 1)
    assert isinstance(lost[-1][ERROR], ConnectionError)
    assert lost[-1][ERROR].__notes__
    assert RESULT in other[-1]


def test_a_stop_request_keeps_the_best_weights_of_a_trial_in_an_object_store(
    make_trial: MakeTrial, base_dir: Path, bucket: str
) -> None:
    open_storage(f"{bucket}/best").publish(base_dir, "base", last="base.json")
    attempt = f"{bucket}/best/trials/0000/attempt_1"
    trial = make_trial(
        train={"steps": 12, "report_every": 1},
        objective=OBJECTIVE,
        base_dir=f"{bucket}/best/base",
        output_dir=attempt,
    )
    (events,) = host_trials([trial], 1, SlotHost(stop_requested=lambda trial: True))
    assert isinstance(events[-1][ERROR], StopTrial)
    assert "adapter_model.safetensors" in open_storage(attempt).children("best")


def test_so_does_a_trial_that_fails(
    make_trial: MakeTrial, base_dir: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For `--retry-failed`, which goes on from its checkpoint."""
    open_storage(f"{bucket}/failed").publish(base_dir, "base", last="base.json")
    attempt = f"{bucket}/failed/trials/0000/attempt_1"
    trial = make_trial(
        train={"steps": 12, "report_every": 4},
        objective=OBJECTIVE,
        base_dir=f"{bucket}/failed/base",
        output_dir=attempt,
    )
    evaluate = Evaluator.evaluate

    def failing(evaluator: Evaluator, *arguments: Any, **options: Any) -> Any:
        scores[0:1] = []
        if not scores:
            raise ZeroDivisionError("no documents")
        return evaluate(evaluator, *arguments, **options)

    scores = [1, 1]
    monkeypatch.setattr(Evaluator, "evaluate", failing)
    (events,) = host_trials([trial], 1)
    assert isinstance(events[-1][ERROR], EvaluationFailed)
    assert "adapter_model.safetensors" in open_storage(attempt).children("best")


def test_a_trial_that_is_asked_alone_ends_and_its_neighbour_trains_on(
    make_trial: MakeTrial,
) -> None:
    train = {"steps": 12, "report_every": 12}
    trials = [make_trial(trial_id=str(n), number=n, train=train, seed=n) for n in range(2)]
    asked = SlotHost(stop_requested=lambda trial: trial == 1)
    stays, ends = host_trials(trials, 2, asked)
    assert isinstance(ends[-1][ERROR], StopTrial)
    assert len(losses(ends)) == 1
    assert losses(stays) == pytest.approx(losses_alone(make_trial(train=train, seed=0)), abs=1e-4)


def test_a_trial_that_is_asked_as_it_waits_for_a_slot_does_not_wait_for_it(
    make_trial: MakeTrial,
) -> None:
    train = {"steps": 12, "report_every": 12}
    trials = [make_trial(trial_id=str(n), number=n, train=train, seed=n) for n in range(2)]
    stays, waits = host_trials(trials, 1, SlotHost(stop_requested=lambda trial: trial == 1))
    assert [list(event) for event in waits] == [[ERROR]]
    assert isinstance(waits[0][ERROR], StopTrial)
    assert len(losses(stays)) == 12


def test_a_stop_request_after_the_last_step_comes_too_late(make_trial: MakeTrial) -> None:
    trial = make_trial(train={"steps": 1, "report_every": 1})
    (events,) = host_trials([trial], 1, SlotHost(stop_requested=lambda trial: True))
    assert RESULT in events[-1]


@pytest.mark.parametrize("report_every", [12, 1])
def test_a_stop_request_saves_a_checkpoint_and_ends_every_trial(
    make_trial: MakeTrial, report_every: int
) -> None:
    train = {"steps": 12, "report_every": report_every}
    first = make_trial(train=train)
    (events,) = host_trials([first], 1, SlotHost(stop_requested=lambda trial: True))
    assert isinstance(events[-1][ERROR], StopTrial)
    reporter = ListReporter()
    train_lora(make_trial(train=train, earlier_attempts=(first.output_dir,)), reporter)
    assert reporter.measurements[0].step == 2
    expected = losses_alone(make_trial(train=train))
    assert losses(events) + [
        m.metrics["train/loss"] for m in reporter.measurements
    ] == pytest.approx(expected, abs=1e-4)
