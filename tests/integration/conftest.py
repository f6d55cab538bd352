"""What the integration tests share: one base evaluation, one Ray cluster, small trials."""

from __future__ import annotations

import gc
import json
import os
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # else Accelerate takes all cores under DeepSpeed
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# bitsandbytes would load the compiler into each process that imports PEFT: a second or more.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

sys.path.insert(0, str(Path(__file__).parents[1]))

import lm_eval.tasks
import object_store
import pytest
import torch
from evaluated import evaluated_base
from lm_eval.tasks._index import TaskIndex
from small_trials import SMALL, Run

from trainables.config import DeepSpeedConfig, TrialConfig
from trainables.evaluation.base_scores import Base
from trainables.methods import METHODS
from trainables.models.loading import load_model, load_tokenizer
from trainables.training.reporter import ListReporter
from trainables.workers.method import trial_function
from tune.cluster.ray_cluster import ray_cluster
from tune.config.sweep_file import load_sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from trainables.packing.engine import SlotEngine
    from tune.config.sweep_config import SweepConfig

# Workers have the environment that their cluster was started in.
_S3 = object_store.reserve()
os.environ["FORGETTING_SWEEPS_CACHE"] = mkdtemp(prefix="node-cache-")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run on the session's cluster."""
    for item in items:
        if isinstance(item, pytest.Function) and "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_collect() -> None:
    """Keep what earlier files have loaded, such as torch, out of each collection of garbage."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def harness_index() -> Iterator[None]:
    """Reads the files of the harness's 14,000 tasks once, not for each name that they lack."""
    build, of_harness = TaskIndex.build, Path(lm_eval.tasks.__file__).parent
    read_once = cache(lambda: build([of_harness]))

    def built(folders: Iterable[Path], **options: Any) -> dict[str, Any]:
        found = [read_once() if f == of_harness else build([f], **options) for f in folders]
        return {name: entry for index in found for name, entry in index.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(built))
        yield


@pytest.fixture(scope="session")
def load() -> Callable[..., SweepConfig]:
    """The quickstart sweep made small, with overrides."""
    return lambda *overrides: load_sweep("quickstart", [*SMALL, *overrides])


@pytest.fixture(scope="session")
def sweep_config(load: Callable[..., SweepConfig]) -> SweepConfig:
    return load()


@pytest.fixture(scope="session")
def base_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="session")
def base_dir(sweep_config: SweepConfig, base_cache: Path) -> Path:
    """The one evaluation of the base that all trials compare themselves with."""
    return evaluated_base(sweep_config, base_cache)


@pytest.fixture(scope="session")
def base(base_dir: Path) -> Base:
    return Base.load(base_dir)


@pytest.fixture(scope="session")
def tokenizer(sweep_config: SweepConfig) -> Any:
    return load_tokenizer(sweep_config.model)


@pytest.fixture
def base_model(sweep_config: SweepConfig) -> Any:
    """A copy of the base of the test's own."""
    return load_model(sweep_config.model).eval()


@pytest.fixture(scope="session")
def make_trial(
    sweep_config: SweepConfig, base_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrialConfig]:
    """A small trial; `train`, `model`, `data`, `deepspeed` and the method's name change parts."""

    def make(method: str = "lora", **changes: Any) -> TrialConfig:
        parts: dict[str, Any] = {
            part: getattr(sweep_config, part).model_copy(update=changes.pop(part, {}))
            for part in ("model", "data", "eval", "train")
        }
        usual = {"rank": 4, "alpha": 8.0} if method == "lora" else {}
        chosen = METHODS.find(method).model_validate(usual | changes.pop(method, {}))
        deepspeed = changes.pop("deepspeed", {})
        fields = {
            "trial_id": "trial",
            "number": 0,
            "seed": 0,
            "data_seed": 0,
            "learning_rate": 1e-3,
            "output_dir": str(tmp_path_factory.mktemp(method)),
            "base_dir": str(base_dir),
            "recipe": method,
            "deepspeed": DeepSpeedConfig(**deepspeed) if chosen.changes_base else None,
        }
        return TrialConfig(method=chosen, **(fields | parts | changes))

    return make


@pytest.fixture(scope="session")
def run() -> Callable[[TrialConfig], Run]:
    """Runs a trial in this process."""

    def run(config: TrialConfig) -> Run:
        reporter = ListReporter()
        return Run(trial_function(config)(config, reporter), reporter.measurements)

    return run


@pytest.fixture
def engine(make_trial: Callable[..., TrialConfig]) -> Iterator[SlotEngine]:
    """Slots for trials as `make_trial` makes them."""
    from in_slots import slots_for

    with slots_for(make_trial()) as engine:
        yield engine


@pytest.fixture(scope="session")
def trl_curve(sweep_config: SweepConfig) -> Callable[..., list[float]]:
    """Losses of a plain TRL training on the raw rows: none of this project's training code."""

    def curve(config: TrialConfig, peft_config: Any = None, **arguments: Any) -> list[float]:

        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        from trainables.data.dataset import training_order
        from trainables.storage.locations import resolve

        folder = resolve(config.model.name)
        lines = Path(resolve(config.data.path)).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        seen = config.train.total_steps(len(rows)) * config.train.batch_size
        rows = [rows[index] for index in training_order(len(rows), seen, config.seed)]
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=SFTConfig(
                output_dir=config.output_dir,
                max_steps=config.train.steps,
                per_device_train_batch_size=config.train.batch_size,
                learning_rate=config.learning_rate,
                lr_scheduler_type=config.train.schedule,
                warmup_steps=0,
                weight_decay=0.0,
                seed=config.seed,
                train_sampling_strategy="sequential",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **arguments,
            ),
            train_dataset=Dataset.from_list(
                [
                    {"prompt": row["prompt"], "completion": f" {row['completion'].strip()}"}
                    for row in rows
                ]
            ),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=peft_config,
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return curve


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Address of a bucket of a real S3 server, which the cluster's workers reach, too."""
    with object_store.s3_server(_S3) as address:
        yield address


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster for the session, with two CPUs and the environment of the command."""
    import ray

    from tune.cluster import ray_cluster as settings

    os.environ |= settings._ENVIRONMENT
    settings._send_nothing_with_trials()
    settings._set_unless_given(settings._WORKER_ENVIRONMENT)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with ray_cluster(None):  # finds it up and uses it
        yield
    ray.shutdown()
