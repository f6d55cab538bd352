"""Whether trials fit the GPUs: the table of `--dry-run` and the check before a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from trainables.config import ModelConfig, TrialConfig
from trainables.decoder_shape import ModelShape, parameters
from trainables.errors import Fault, UserError
from trainables.models.model_shape import architecture, read_shape
from trainables.process.memory_estimate import base_estimate, disk_estimate, estimate
from tune.config.sweep_config import SweepConfig
from tune.search.space import planned_runs
from tune.search.trial_ids import largest_trial

_CARDS_GIB = (24, 40, 48, 80, 141)
_GIB = 1 << 30
_SMALLER_MODEL = (
    "take a smaller model, model.dtype: bfloat16, model.load_in_4bit: true (adapters) or larger "
    "GPUs"
)
_CHECKPOINTS = 3  # a trial keeps two, and writes the next


def memory_table(config: SweepConfig) -> Table | str:
    """Which card the trials of each recipe fit, or a sentence if that is unknown.

    Where only smaller batches fit, they are halved as memory runs out.
    """
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
    table.add_column("recipe", no_wrap=True)
    for heading in ("GiB", *(f"{card} GiB" for card in _CARDS_GIB)):
        table.add_column(heading, justify="right")
    for recipe in config.search.recipes:
        trial = largest_trial(config, recipe)
        needs = [_need(config, shape, each) for each in (trial, _with_one_sample(trial))]
        table.add_row(_label(trial), *_cells(needs, trial.gpus_per_worker))
    trial = largest_trial(config, config.search.recipes[0])
    needs = [base_estimate(shape, each).peak for each in (trial, _with_one_sample(trial))]
    table.add_row("base, on 1 GPU", *_cells(needs, 1.0))
    return table


def _need(config: SweepConfig, shape: ModelShape, trial: TrialConfig) -> float | None:
    """Bytes that a worker needs; None if unknown, as under a user's own DeepSpeed settings."""
    if trial.method.changes_base and config.deepspeed.config is not None:
        return None
    estimated = estimate(shape, trial)
    return None if estimated is None else estimated.peak


def _cells(needs: Sequence[float | None], gpus: float) -> list[str]:
    """The need in GiB, and what fits each card: the batches as they are, smaller ones, or none."""
    known = [need / _GIB for need in needs if need is not None]
    if len(known) < len(needs):
        return ["unknown"]
    whole, least = known
    cards = [_share(card, gpus) for card in _CARDS_GIB]
    fits = ["fits" if whole <= card else "smaller" if least <= card else "no" for card in cards]
    return [f"{whole:.1f}", *fits]


def _why_unknown(model: ModelConfig) -> str:
    if family := architecture(model):
        return (
            f"no estimate for model_type {family}; trials halve their micro-batch where memory "
            "runs out"
        )
    fetch = "" if model.name.endswith(".gguf") else "fetch the model, or "
    return f"the shape of {model.name} is not known here; {fetch}give model.shape"


def disk_space(config: SweepConfig) -> list[str]:
    """What trials of each recipe leave on the disk, and take while they train."""
    shape = read_shape(config.model)
    if shape is None:
        return []
    lines, runs = [], planned_runs(config)
    for recipe in config.search.recipes:
        trial = largest_trial(config, recipe)
        disk = disk_estimate(shape, trial)
        best = trial.train.save_weights * disk.weights
        lines.append(
            f"{recipe}: a trial takes up to {_gib(_CHECKPOINTS * disk.checkpoint + best)} of disk "
            f"while it trains, and leaves up to {_gib(2 * best)} of final and best weights, "
            f"{_gib(2 * best * runs)} if all {runs} trials are such"
        )
    return lines


def _gib(size: float) -> str:
    gib = size / _GIB
    return f"{gib:,.0f} GiB" if gib >= 10 else f"{gib:.2g} GiB"


def cards_by_recipe(
    config: SweepConfig, smallest_gpu: Callable[[str | None], int | None]
) -> dict[str, int]:
    """Bytes of the smallest GPU that each recipe may get; recipes without one are left out.

    `smallest_gpu` gives the bytes of the cluster's smallest GPU of a type, or of any type.
    """
    cards: dict[str, int] = {}
    for recipe in config.search.recipes:
        resources = config.recipe_resources(recipe)
        has_none = 0 in (resources.gpus_per_worker, config.resources.max_gpus)
        if not has_none and (card := smallest_gpu(resources.accelerator_type)):
            cards[recipe] = card
    return cards


def check_memory(config: SweepConfig, cards: Mapping[str, int], has_base: bool) -> None:
    """Check that trials fit the GPUs of `cards_by_recipe`, one sample at a time if need be.

    A base that has been evaluated, perhaps on larger GPUs, need not fit.

    Raises:
        UserError: a recipe or the base's evaluation does not fit.
    """
    shape = read_shape(config.model) if cards else None
    if shape is None:
        return
    faults = []
    for recipe in [recipe for recipe in config.search.recipes if recipe in cards]:
        trial = _with_one_sample(largest_trial(config, recipe))
        need, card = _need(config, shape, trial), _share(cards[recipe], trial.gpus_per_worker)
        if need is not None and need > card:
            rule = f"a worker needs about {need / _GIB:.1f} GiB at one sample at a time"
            rule += f", and has {card / _GIB:.1f} GiB"
            faults.append(Fault(f"search.{recipe}", rule, _remedy(config, trial)))
    first = config.search.recipes[0]
    base_need = base_estimate(shape, _with_one_sample(largest_trial(config, first))).peak
    if not has_base and first in cards and base_need > cards[first]:
        rule = (
            f"one process makes it, with the whole model on its GPU: about {base_need / _GIB:.1f} "
            f"GiB at one sample at a time, and it has {cards[first] / _GIB:.1f} GiB"
        )
        faults.append(Fault("the base's evaluation", rule, _SMALLER_MODEL))
    if faults:
        raise UserError(faults)


def _remedy(config: SweepConfig, trial: TrialConfig) -> str:
    remedies = ["set train.gradient_checkpointing: true", "lower data.max_length"]
    axis, _ = config.search.space(trial.recipe).capacities
    if trial.method.changes_base:
        workers = f"{config.resources_field(trial.recipe)}.workers"
        remedies.append(f"raise deepspeed.zero_stage or {workers}, or offload")
    elif axis:
        rises = trial.method.capacity_falls and axis != "parameters"
        field = f"search.{trial.recipe}.{axis.replace(' ', '_')}"
        remedies.append(f"{'raise' if rises else 'lower'} {field}")
    return f"{', '.join(remedies)}, or {_SMALLER_MODEL}"


def _share(card: float, gpus: float) -> float:
    """A worker's share of a card, which several may share."""
    return card * min(1.0, gpus or 1.0)


def _with_one_sample(trial: TrialConfig) -> TrialConfig:
    return next(trial.with_eval_batch(1).in_micro_batches(1))


def _label(trial: TrialConfig) -> str:
    if trial.deepspeed is not None:
        return f"{trial.recipe}, ZeRO-{trial.deepspeed.zero_stage} on {trial.workers}"
    return ", ".join([trial.recipe, *([str(trial.capacity)] if trial.capacity else [])])
