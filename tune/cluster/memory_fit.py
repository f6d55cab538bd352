"""Whether trials fit the GPUs: the table of `--dry-run` and the check before a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.table import Table

from trainables.config import Method, ModelConfig, ModelShape, TrialConfig
from trainables.errors import Fault, UserError
from trainables.models.model_shape import architecture, read_shape
from trainables.process import memory_estimate as forecast
from trainables.process.parameter_counts import parameters
from tune.config.search_config import SearchConfig
from tune.config.sweep_config import SweepConfig
from tune.search.space import planned_runs
from tune.search.trial_ids import largest_trial

_CARDS_GIB = (24, 40, 48, 80, 141)
_GIB = 1 << 30
_CHECKPOINTS = 3  # a trial keeps two, and writes the next


def memory_table(config: SweepConfig) -> Table | str:
    """Which micro-batch of each method fits which card, or a sentence if that is unknown."""
    shape = read_shape(config.model)
    if shape is None:
        return f"memory: {_why_unknown(config.model)}"
    table = Table(
        title=f"memory of a worker, {parameters(shape) / 1e9:.3g} B parameters, samples of "
        f"{config.data.max_length} tokens",
        title_justify="left",
        box=None,  # its lines would leave no room for the labels in 80 columns
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", no_wrap=True)
    for heading in ("GiB", "peak in", *(f"{card} GiB" for card in _CARDS_GIB)):
        table.add_column(heading, justify="right")
    for method in _estimated(config):
        trial = largest_trial(config, method)
        estimate = forecast.estimate(shape, trial)
        cells = [
            _cell(trial, forecast.fitted(shape, trial, _share_of(card * _GIB, trial)))
            for card in _CARDS_GIB
        ]
        table.add_row(_label(trial), f"{estimate.peak / _GIB:.1f}", estimate.phase, *cells)
    trial = largest_trial(config, config.search.methods[0])
    cells = [_cell(trial, forecast.fitted_base(shape, trial, card * _GIB)) for card in _CARDS_GIB]
    peak = f"{forecast.base_peak(shape, trial) / _GIB:.1f}"
    table.add_row("base, on 1 GPU", peak, "evaluation", *cells)
    return table


def _why_unknown(model: ModelConfig) -> str:
    if family := architecture(model):
        return (
            f"no estimate for model_type {family}; trials halve their micro-batch where memory "
            "runs out"
        )
    fetch = "" if model.name.endswith(".gguf") else "fetch the model, or "
    return f"the shape of {model.name} is not known here; {fetch}give model.shape"


def host_memory(config: SweepConfig) -> list[str]:
    """What full fine-tuning needs of the nodes' own memory, which nothing checks."""
    shape = read_shape(config.model)
    if shape is None or "full" not in _estimated(config):
        return []
    trial = largest_trial(config, "full")
    host = forecast.host_estimate(shape, trial)
    line = f"full: a checkpoint takes {_gib(host.checkpoint)} of its node's own memory"
    if host.offloaded:
        together = host.checkpoint + trial.workers * host.offloaded
        line += (
            f" beside {_gib(host.offloaded)} that each worker offloads, "
            f"{_gib(together)} where all {trial.workers} are on one node"
        )
    return [f"{line}; whether it has that is not checked"]


def disk_space(config: SweepConfig) -> list[str]:
    """What trials of each method leave on the disk, and take while they train."""
    shape = read_shape(config.model)
    if shape is None:
        return []
    lines, runs = [], planned_runs(config)
    for method in config.search.methods:
        trial = largest_trial(config, method)
        disk = forecast.disk_estimate(shape, trial)
        best = trial.train.save_weights * disk.weights
        lines.append(
            f"{method}: a trial takes up to {_gib(_CHECKPOINTS * disk.checkpoint + best)} of disk "
            f"while it trains, and leaves up to {_gib(2 * best)} of final and best weights, "
            f"{_gib(2 * best * runs)} if all {runs} trials are such"
        )
    return lines


def _gib(size: float) -> str:
    gib = size / _GIB
    return f"{gib:,.0f} GiB" if gib >= 10 else f"{gib:.2g} GiB"


@dataclass(frozen=True)
class MemoryFit:
    """Makes trials fit the smallest GPU that a cluster has for them.

    Attributes:
        shape: shape of the model; None if unknown, in which case nothing is checked.
        cards: bytes of that GPU by method; methods without an entry are not checked.
    """

    shape: ModelShape | None
    cards: Mapping[Method, int]

    def check(self, config: SweepConfig, has_base: bool = False) -> list[str]:
        """A sentence on each method whose batches are made smaller.

        A base that has been evaluated, perhaps on larger GPUs, need not fit.

        Raises:
            UserError: a method or the base's evaluation does not fit even one sample at a time.
        """
        shape = self.shape
        if shape is None:
            return []
        notices, faults = [], []
        for method in [method for method in _estimated(config) if method in self.cards]:
            trial = largest_trial(config, method)
            smaller = forecast.fitted(shape, trial, self._share(trial))
            if smaller is None:
                faults.append(self._fault(shape, trial, config.search))
            elif smaller != trial:
                need = f"{_need(shape, trial)} GiB would not fit"
                notices.append(f"{_label(trial)}: {_portions(trial, smaller)}, as {need}")
        if not has_base and (base_fault := self._base_fault(shape, config)):
            faults.append(base_fault)
        if faults:
            raise UserError(faults)
        return notices

    def resized(self, trial: TrialConfig) -> TrialConfig:
        """The trial with the largest micro-batch and eval batch that fit; its batch size stays."""
        if self.shape is None or trial.method not in self.cards or not _is_known(trial):
            return trial
        return forecast.fitted(self.shape, trial, self._share(trial)) or trial

    def _share(self, trial: TrialConfig) -> float:
        return _share_of(self.cards[trial.method], trial)

    def _base_fault(self, shape: ModelShape, config: SweepConfig) -> Fault | None:
        """The fault if the base does not fit: a single process evaluates it, despite `workers`."""
        method = config.search.methods[0]
        trial, card = largest_trial(config, method), self.cards.get(method)
        if card is None or forecast.fitted_base(shape, trial, card):
            return None
        need = forecast.base_peak(shape, _with_one_sample(trial)) / _GIB
        smaller = "" if config.model.dtype == "bfloat16" else " or model.dtype: bfloat16"
        smaller += _or_4_bits(trial, config.search)
        return Fault(
            "the base's evaluation",
            f"one process makes it, with the whole model on its GPU: about {need:.1f} GiB at one "
            f"sample at a time, and it has {card / _GIB:.1f} GiB",
            f"take a smaller model{smaller} or larger GPUs",
        )

    def _fault(self, shape: ModelShape, trial: TrialConfig, search: SearchConfig) -> Fault:
        need = _need(shape, _with_one_sample(trial))
        return Fault(
            f"search.{trial.method}",
            f"a worker needs about {need} GiB at one sample at a time, and has "
            f"{self._share(trial) / _GIB:.1f} GiB",
            self._remedy(shape, trial, search),
        )

    def _remedy(self, shape: ModelShape, trial: TrialConfig, search: SearchConfig) -> str:
        card = self._share(trial)
        train = trial.train.model_copy(update={"gradient_checkpointing": True})
        recomputing = trial.model_copy(update={"train": train})
        if forecast.fitted(shape, recomputing, card):
            return "set train.gradient_checkpointing: true, with which it fits"
        if trial.lora and search.lora:
            fits = [r for r in search.lora.rank if forecast.fitted(shape, _of_rank(trial, r), card)]
            drop = f"drop the largest search.lora.rank (up to {max(fits)} fits), " if fits else ""
            smaller = f"a smaller model{_or_4_bits(trial, search)} or larger GPUs"
            return f"{drop}lower data.max_length, or take {smaller}"
        assert trial.deepspeed is not None  # noqa: S101 - a full trial has it
        offloads = trial.deepspeed.offload_optimizer and trial.deepspeed.offload_parameters
        more = "raise deepspeed.zero_stage or resources.full.workers"
        return more if offloads else f"{more}, or offload"


def _or_4_bits(trial: TrialConfig, search: SearchConfig) -> str:
    is_possible = not search.full and not trial.model.load_in_4bit
    return " or model.load_in_4bit: true" if is_possible else ""


def memory_fit(config: SweepConfig, smallest_gpu: Callable[[str | None], int | None]) -> MemoryFit:
    """The check for a sweep on a cluster.

    `smallest_gpu` gives the bytes of the cluster's smallest GPU of a type, or of any type.
    """
    cards: dict[Method, int] = {}
    for method in config.search.methods:
        resources = config.resources.of(method)
        has_none = 0 in (resources.gpus_per_worker, config.resources.max_gpus)
        if not has_none and (card := smallest_gpu(resources.accelerator_type)):
            cards[method] = card
    return MemoryFit(read_shape(config.model) if cards else None, cards)


def _estimated(config: SweepConfig) -> list[Method]:
    """Methods with a memory estimate; under a user's own DeepSpeed settings there is none."""
    own = config.deepspeed.config is not None
    return [method for method in config.search.methods if method == "lora" or not own]


def _is_known(trial: TrialConfig) -> bool:
    return trial.deepspeed is None or trial.deepspeed.config is None


def _need(shape: ModelShape, trial: TrialConfig) -> str:
    return f"{forecast.estimate(shape, trial).peak / _GIB:.1f}"


def _share_of(card: float, trial: TrialConfig) -> float:
    """A worker's share of a card, which several may share."""
    return card * min(1.0, trial.gpus_per_worker or 1.0)


def _of_rank(trial: TrialConfig, rank: int) -> TrialConfig:
    assert trial.lora is not None  # noqa: S101 - a LoRA trial has it
    lora = trial.lora.model_copy(update={"rank": rank})
    return trial.model_copy(update={"lora": lora})


def _with_one_sample(trial: TrialConfig) -> TrialConfig:
    return next(trial.with_eval_batch(1).in_micro_batches(1))


def _cell(trial: TrialConfig, smaller: TrialConfig | None) -> str:
    """What fits a card of the table: the trial as it is, smaller batches or nothing."""
    if smaller is None:
        return "no"
    return _portions(trial, smaller) or "fits"


def _portions(trial: TrialConfig, smaller: TrialConfig) -> str:
    """The batch sizes that are smaller in the second trial."""
    sizes = {
        "micro-batch": (trial.train.micro_batch_size, smaller.train.micro_batch_size),
        "eval batch": (trial.eval.batch_size, smaller.eval.batch_size),
    }
    return ", ".join(f"{name} {after}" for name, (before, after) in sizes.items() if after < before)


def _label(trial: TrialConfig) -> str:
    if trial.lora:
        return f"lora, rank {trial.lora.rank}"
    assert trial.deepspeed is not None  # noqa: S101 - a full trial has it
    return f"full, ZeRO-{trial.deepspeed.zero_stage} on {trial.workers}"
