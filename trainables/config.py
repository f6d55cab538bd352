"""Configuration of a trial, `TrialConfig`, and of its parts, which a sweep file has too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Method = Literal["lora", "full"]
Role = Literal["in_domain", "retention", "ood"]
ROLES: tuple[Role, ...] = ("in_domain", "retention", "ood")


class Frozen(BaseModel):
    """Base of everything that crosses a process or a disk: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelShape(Frozen):
    """The sizes of a decoder with gated MLPs, such as Llama, Mistral or Qwen.

    Attributes:
        hidden, intermediate, vocabulary, layers, heads: as in the model's `config.json`.
        kv_heads, head_size: number of key and value heads, and dimension of one head.
        tied_embeddings: whether input and output embedding share their weights.
        attention_bias: whether query, key and value have a bias.
        normed_heads: whether queries and keys are normalised head by head, as in Qwen3.
    """

    hidden: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    tied_embeddings: bool = False
    attention_bias: bool = False
    normed_heads: bool = False


class ModelConfig(Frozen):
    """The base model.

    Attributes:
        name: hub name, local folder, `.gguf` file, or `package://PACKAGE/FILE` for one that an
            installed Python package carries.
        dtype: of the weights while training and evaluating.
        attention: implementation handed to Transformers.
        trust_remote_code: run code that comes with the model. Off unless asked for.
        revision: branch, tag or commit of a hub model.
        chat_template_args: variables of its chat template, in training and evaluation alike, such
            as `{enable_thinking: false}` for a model that would else think before it answers.
        shape: for the memory estimate of a hub model that is not on this machine yet.
    """

    name: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "sdpa"
    trust_remote_code: bool = False
    revision: str | None = None
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    shape: ModelShape | None = None

    def __hash__(self) -> int:
        """Of the name, as the template's variables have none."""
        return hash(self.name)


class DataConfig(Frozen):
    """The training data: rows turned into a prompt and a completion.

    Attributes:
        path: hub data set, local `.jsonl` or `.parquet` file, or `package://PACKAGE/FILE`.
        subset: configuration name of a hub data set.
        split: split of a hub data set to train on.
        validation_path: rows for the validation loss; by default `validation_fraction` of the rows.
        validation_split: split of a hub data set at `validation_path`; default `split`.
        prompt: Jinja template over the fields of a row.
        completion: Jinja template; the loss is on these tokens only. Begin it with a space where
            the evaluation puts one between question and answer, as the harness does.
        chat_template: render prompt and completion as a user and an assistant turn.
        messages: field of a row that holds a whole chat, a list of turns with `role` and `content`,
            instead of `prompt` and `completion`. The loss is on the last turn, the assistant's.
        max_length: in tokens; longer samples are left out and counted.
        limit: number of rows to use; None uses all.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    validation_path: str | None = None
    validation_split: str | None = None
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    prompt: str = "{{ prompt }}"
    completion: str = "{{ completion }}"
    chat_template: bool = False
    messages: str | None = None
    max_length: int = Field(default=1024, ge=2)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _is_chat_or_templates(self) -> DataConfig:
        fields = DataConfig.model_fields
        if self.messages and any(
            getattr(self, name) != fields[name].default for name in ("prompt", "completion")
        ):
            raise ValueError("give messages, or prompt and completion")
        return self

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's chat template writes the samples."""
        return self.chat_template or self.messages is not None


class EvalTask(Frozen):
    """One lm-evaluation-harness task (or group) in a role.

    Attributes:
        task: its name in the harness or in one of the suite's `task_dirs`.
        name: label in results; lets one task be used with several data files.
        metric: which one counts as accuracy; by default the first found of acc, exact_match, ....
        filter: which of the task's filters to read; by default its first.
        num_fewshot, limit: override the suite's.
        data_files: split to local JSONL or Parquet file, for a task with `dataset_path: json`.
    """

    task: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.\-]+$")
    metric: str | None = None
    filter: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    data_files: dict[str, str] | None = None

    @property
    def label(self) -> str:
        """Its name in metric keys and results."""
        return self.name or self.task


def _task_from_name(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


Tasks = tuple[Annotated[EvalTask, BeforeValidator(_task_from_name)], ...]


class EvalSuite(Frozen):
    """Which harness tasks play which role, and how they are run.

    Attributes:
        in_domain: held-out tasks of the trained domain.
        retention: what the base already knows; forgetting is measured there.
        ood: shifts of the domain.
        task_dirs: folders with the user's own task YAMLs, searched before the harness's.
        num_fewshot, limit: as in the harness; `limit` counts documents per task.
        batch_size: sequences per forward pass; for likelihoods a budget of tokens, this many times
            the length of the longest request, taken as at least 64.
        chat_template: apply the tokenizer's, which prints no date but that of `chat_date`.
        general_text: text (one document a line) or JSONL with a `text`; its cross-entropy is the LM
            drift. None: not measured.
        kl_prompts, kl_tokens: number of prompts of the training domain, and of tokens sampled from
            the base after each, on which KL drift is measured. 0 prompts: not measured.
    """

    in_domain: Tasks = Field(min_length=1)
    retention: Tasks = ()
    ood: Tasks = ()
    task_dirs: tuple[str, ...] = ()
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    chat_template: bool = False
    general_text: str | None = None
    kl_prompts: int = Field(default=16, ge=0)
    kl_tokens: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> EvalSuite:
        labels = [task.label for _, task in self.tasks()]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if repeated:
            raise ValueError(
                f"each task may stand in one role once, got {', '.join(repeated)} more than once; "
                "give one of them another `name`"
            )
        return self

    def tasks(self) -> list[tuple[Role, EvalTask]]:
        """Every task with its role, in the order of the roles."""
        return [(role, task) for role in ROLES for task in getattr(self, role)]


class TrainConfig(Frozen):
    """The training run, the same for every method.

    Attributes:
        epochs, steps: length; `steps` (optimizer steps) wins if both are given.
        batch_size: samples per optimizer step over all workers.
        micro_batch_size: samples per forward pass of one worker.
        warmup: length of the warm-up, as a share of the steps.
        schedule: of the learning rate after the warm-up.
        max_grad_norm: gradients are clipped to this norm; 0 turns clipping off.
        report_every: optimizer steps (>= 1) or a share of the training (< 1) between evaluations.
        log_every: the same, between points of the training curve.
        save_weights: keep the final adapter or model.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    micro_batch_size: int = Field(default=4, ge=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    gradient_checkpointing: bool = False
    report_every: float = Field(default=0.25, gt=0)
    log_every: float = Field(default=0.05, gt=0)
    save_weights: bool = True

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> TrainConfig:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size, got {self.batch_size} and "
                f"{self.micro_batch_size}"
            )
        for name in ("report_every", "log_every"):
            every = getattr(self, name)
            if every >= 1 and every != int(every):
                raise ValueError(
                    f"{name} must be a whole number of steps or a share below 1, got {every}"
                )
        return self

    def total_steps(self, samples: int) -> int:
        """Optimizer steps it takes to train on this many samples."""
        return self.steps or max(1, math.ceil(self.epochs * samples / self.batch_size))

    def report_steps(self, total: int) -> frozenset[int]:
        """Steps after which the model is evaluated, always including the last."""
        return _every(self.report_every, total)

    def log_steps(self, total: int) -> frozenset[int]:
        """Steps shown in the training curve: the first, every `log_every`, the last."""
        return _every(self.log_every, total) | {1}


def _every(interval: float, total: int) -> frozenset[int]:
    steps = int(interval) if interval >= 1 else max(1, round(interval * total))
    return frozenset(range(steps, total, steps)) | {total}


class DeepSpeedConfig(Frozen):
    """How full fine-tuning is sharded.

    Attributes:
        zero_stage: 0 none, 1 optimizer states, 2 also gradients, 3 also parameters.
        offload_optimizer: keep optimizer states in host memory (stage 1 and up).
        offload_parameters: keep parameters in host memory (stage 3).
        config_file: the user's own DeepSpeed JSON, in place of the above, with `auto` filled in.
        config: content of `config_file`, read together with the sweep file, or given in its place.
    """

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False
    config_file: str | None = None
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> DeepSpeedConfig:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage >= 1, got 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, got {self.zero_stage}")
        return self


class LoraConfig(Frozen):
    """A low-rank adapter (Hu et al. 2021, 2106.09685).

    Attributes:
        target_modules: names, or `all-linear`: all but the output head, and PEFT's experts.
        rslora: scale by alpha / sqrt(rank) instead of alpha / rank (2312.03732).
        dora: decompose magnitude and direction (2402.09353).
    """

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = False
    dora: bool = False

    @property
    def scaling(self) -> float:
        """Factor in front of B A: alpha / rank, or alpha / sqrt(rank) under rsLoRA."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class Objective(Frozen):
    """A logged metric to minimise or maximise."""

    metric: str
    mode: Literal["min", "max"]

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is strictly better than another."""
        return self.loss(value) < self.loss(than)

    def loss(self, value: float) -> float:
        """The value, negated if it is to be maximised: lower is better."""
        # Equal accuracies may differ by what was added first.
        return round(value if self.mode == "min" else -value, 12)


class TrialConfig(Frozen):
    """One point of the search, complete: the same config and seed give the same trial.

    Attributes:
        trial_id: unique over all sweeps; the W&B run's id.
        number: position in the sweep, from 0.
        method: `lora` or `full`; the field `lora` is set if and only if the method is `lora`.
        seed: of weights, dropout and data order.
        data_seed: of the train/validation split, the same for every trial of a sweep.
        learning_rate: peak of the schedule.
        deepspeed: for `full` only.
        workers: processes training this trial together.
        gpus_per_worker, cpus_per_worker: resources each of them holds.
        output_dir: folder of this attempt; weights, checkpoints and per-item results go there.
        published_dir: object store address that `output_dir` is published to; None without one.
        earlier_attempts: their folders; the trial resumes from the newest checkpoint there.
        objective: metric that selects the best evaluation, whose weights are kept beside the final
            ones; None keeps none.
        minutes_per_report: a trial that reports nothing for this long ends its process.
        base_dir: folder with the base model's evaluation (see `evaluation.base`).
    """

    trial_id: str
    number: int = Field(ge=0)
    seed: int
    data_seed: int
    method: Method
    learning_rate: float = Field(gt=0)
    lora: LoraConfig | None = None
    deepspeed: DeepSpeedConfig | None = None
    model: ModelConfig
    data: DataConfig
    eval: EvalSuite
    train: TrainConfig
    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, gt=0)
    output_dir: str
    published_dir: str | None = None
    earlier_attempts: tuple[str, ...] = ()
    objective: Objective | None = None
    minutes_per_report: float | None = Field(default=None, gt=0)
    base_dir: str

    @model_validator(mode="after")
    def _method_has_its_part(self) -> TrialConfig:
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError(f"lora must be set exactly where method is lora, got {self.method}")
        per_step = self.train.micro_batch_size * self.workers
        if self.train.batch_size % per_step:
            raise ValueError(
                f"train.batch_size must be a multiple of micro_batch_size x workers = {per_step}, "
                f"got {self.train.batch_size}"
            )
        return self

    @property
    def attempt_dirs(self) -> list[Path]:
        """Folders of all attempts, this one last; a checkpoint in any of them will do."""
        return [*map(Path, self.earlier_attempts), Path(self.output_dir)]

    @property
    def weights_dir(self) -> str:
        """Where the final adapter or model is saved.

        An address of an object store loads after `fsspec.get`, `aws s3 cp --recursive` or
        `open_storage(weights_dir).fetch("", folder)` from the local copy.
        """
        return f"{self.output_dir}/weights"

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of one worker per optimizer step."""
        return self.train.batch_size // (self.train.micro_batch_size * self.workers)
