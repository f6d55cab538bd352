"""What a trial will take of GPUs and disks, from its model's shape; never imports torch.

A worker's peak on its GPU is what stays throughout plus the highest of what comes and goes:

    static      weights, fp32 master copy, adapters, AdamW's two moments (Rajbhandari et al. 2020,
                ZeRO, 1910.02054, section 3: 2 + 4 + 4 + 4 bytes per parameter in 16 bit)
    forward     activations kept for the backward pass (Korthikanti et al. 2022, 2205.05198, section
                4, redone for gated MLPs, RMSNorm and grouped heads), then the loss in tiles
    backward    gradients, and one layer's activations again under gradient checkpointing
    update      gradients, and their fp32 copy under DeepSpeed
    evaluation  a batch in one layer with all layers' keys and values, or logits in tiles

The tests track every tensor of training steps on a CPU: the estimate is within 15 % of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trainables.config import ModelShape, TrialConfig
from trainables.config.eval_config import GENERAL_TEXT_TOKENS
from trainables.decoder_shape import adapted_linears, linear_sizes, linear_weights, parameters
from trainables.methods.base import Footprint

_BYTES = {"float32": 4, "bfloat16": 2}
_FP32 = 4

# TRL's fused head projects this many tokens onto this many words at a time. A test holds that all
# architectures of `model_shape` are trained by it; of others whose shape is stated it is assumed.
_TILE_TOKENS, _TILE_WORDS = 4096, 32768

# In fp32, of all labelled tokens, for a loss that reads them; and beside them of the base.
_LOGITS_COPIES, _BASE_COPIES = 3, 3

# Most logits that an evaluation's losses compute at a time.
LOGITS_AT_ONCE = 1 << 26

# DeepSpeed's defaults, in elements: the buffer for exchanging gradients, and the most parameters
# that ZeRO-3 keeps gathered at a time.
_BUCKET, _MOST_LIVE = 500_000_000, 1_000_000_000

# CUDA's context and library workspaces, and what fragmentation keeps the allocator from using.
_CONTEXT = 1 << 30
_FRAGMENTATION = 0.05


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU: `static` throughout, and the peaks of training and evaluation beside it."""

    static: float
    training: float
    evaluation: float

    @property
    def tensors(self) -> float:
        """The highest sum of all tensors."""
        return self.static + max(self.training, self.evaluation)

    @property
    def peak(self) -> float:
        """What the card must hold: tensors, fragmentation, CUDA's context."""
        return self.tensors * (1 + _FRAGMENTATION) + _CONTEXT


def estimate(shape: ModelShape, trial: TrialConfig) -> MemoryEstimate | None:
    """The memory of one worker of a trial, with the longest samples its data may have.

    How many slots fit is not estimated, but measured (`packing.probe`).

    Returns:
        None if it is not known what the method keeps.
    """
    footprints = _footprints(shape, trial)
    if footprints is None:
        return None
    is_full = trial.method.changes_base
    states = _full_states(shape, trial) if is_full else _adapter_states(shape, trial)
    if is_full and trial.loss.needs_base:
        states = states._replace(static=states.static + _base(shape, trial))
    tokens = trial.train.micro_batch_size * trial.data.max_length
    layer = tokens * _activations(shape, trial, footprints)
    size = _bytes(trial)
    layer += sum(_FP32 * each.per_layer + size * each.matrices for each in footprints.values())
    transient = _transient(shape, trial, tokens)
    brief = (each.brief + tokens * each.brief_per_token for each in footprints.values())
    transient += _FP32 * max(brief, default=0.0)
    kept, last_layer = shape.layers * layer, layer
    if trial.train.gradient_checkpointing:
        kept, last_layer = tokens * shape.layers * shape.hidden * _bytes(trial), 0.0
        transient += layer
    kept += tokens * shape.hidden * (_FP32 + 2 * _bytes(trial))  # the last norm
    if trial.loss.reads_base_weights:  # the differences, while the penalty's gradient is due
        transient += parameters(shape) * size
    earlier = states.gradients if trial.accumulation_steps > 1 else 0.0
    forward = earlier + kept + max(_head(shape, trial, tokens), transient) + states.buffers
    backward = states.gradients + last_layer + transient + states.buffers
    return MemoryEstimate(
        static=states.static,
        training=max(forward, backward, states.gradients + states.update),
        evaluation=_evaluation(shape, trial) + states.live,
    )


def base_estimate(shape: ModelShape, trial: TrialConfig) -> MemoryEstimate:
    """The memory of the process that evaluates the whole base as the trial will be."""
    return MemoryEstimate(_base(shape, trial), 0.0, _evaluation(shape, trial))


class DiskEstimate(NamedTuple):
    """Bytes of a trial's final weights, and of each checkpoint while it trains."""

    weights: int
    checkpoint: int


def disk_estimate(shape: ModelShape, trial: TrialConfig) -> DiskEstimate:
    """An adapter in fp32, or the model; in checkpoints both in fp32, and the moments too."""
    count = trial.method.parameters(shape)
    size = _bytes(trial) if trial.method.changes_base else _FP32
    return DiskEstimate(size * count, 3 * _FP32 * count)


class _States(NamedTuple):
    """Bytes of the parameters' states; `live`: gathered parameters, in every forward pass."""

    static: float
    gradients: float
    buffers: float = 0.0
    update: float = 0.0
    live: float = 0.0


def _footprints(shape: ModelShape, trial: TrialConfig) -> dict[str, Footprint] | None:
    """What each adapted linear layer keeps, by its name; None if that is not known of any."""
    if trial.method.changes_base:
        return {}
    if trial.method.modules is None:
        return None
    sizes = linear_sizes(shape)
    footprints = {}
    for name in adapted_linears(shape, trial.method.modules):
        footprint = trial.method.footprint(*sizes[name])
        if footprint is None:
            return None
        footprints[name] = footprint
    return footprints


def _adapter_states(shape: ModelShape, trial: TrialConfig) -> _States:
    """The frozen base in its dtype; the adapter, its gradients and moments in fp32 (PEFT)."""
    adapter = trial.method.parameters(shape) * _FP32
    frozen = trial.method.frozen_parameters(shape) * _FP32
    return _States(static=_base(shape, trial) + 3 * adapter + frozen, gradients=adapter)


def _base(shape: ModelShape, trial: TrialConfig) -> float:
    """The frozen base's weights.

    In 4 bits the matrices of its layers have a byte more for each 64 weights, and an fp32 number
    for each 256 of these bytes (QLoRA, 2305.14314, section 3).
    """
    count = parameters(shape)
    if not trial.model.load_in_4bit:
        return count * _bytes(trial)
    quantised = shape.layers * sum(linear_weights(shape))
    each = 1 / 2 + 1 / 64 + _FP32 / (64 * 256)
    return (count - quantised) * _bytes(trial) + quantised * each


def _full_states(shape: ModelShape, trial: TrialConfig) -> _States:
    """DeepSpeed: the weights, an fp32 copy and two moments.

    Only stage 0 makes no copy of weights that are fp32 already. Stage 1 shards copy and moments
    over the workers, stage 2 also gradients, stage 3 also weights. What is offloaded is in host
    memory; parameters are on the GPU while they are used.
    """
    assert trial.deepspeed is not None  # noqa: S101 - a full trial has it
    deepspeed, count, size = trial.deepspeed, parameters(shape), _bytes(trial)
    stage, workers = deepspeed.zero_stage, trial.workers
    weights = 0.0 if deepspeed.offload_parameters else count * size / (workers if stage == 3 else 1)
    fp32 = 0.0 if deepspeed.offload_optimizer else count * _FP32 / (workers if stage else 1)
    copies = 2 if stage == 0 and size == _FP32 else 3
    is_gathered = stage == 3 and (workers > 1 or deepspeed.offload_parameters)
    live = min(count, _MOST_LIVE) * size if is_gathered else 0.0
    bucket = _BUCKET * size if stage else 0.0
    gradients = count * size / (workers if stage >= 2 else 1)
    if deepspeed.offload_optimizer and stage >= 2:  # each goes to the optimizer as it is made
        gradients = 0.0
    static = weights + copies * fp32
    if stage == 3:  # allocates bucket and gradients once, the others anew each time
        return _States(static + bucket + gradients, 0.0, live, fp32, live)
    return _States(static, gradients, bucket, fp32)


def _activations(
    shape: ModelShape, trial: TrialConfig, footprints: Mapping[str, Footprint]
) -> float:
    """Bytes per token that one layer keeps for the backward pass.

    Both norms keep their input in fp32; attention keeps query, key, value and output; the MLP keeps
    gate, its activation and up. A linear layer keeps its input if its weight, or an adapter on it,
    is trained; an fp32 adapter on a 16-bit base keeps its own copy.
    """
    hidden, inner, heads = shape.hidden, shape.intermediate, shape.heads * shape.head_size
    size = _bytes(trial)
    kept: float = 2 * _FP32 * hidden + size * (4 * heads + 3 * inner) + _FP32 * shape.heads
    if trial.method.changes_base:
        return kept + size * (4 * hidden + inner)
    kept += sum(
        size * each.per_token + _FP32 * each.per_token_fp32 + each.mask
        for each in footprints.values()
    )
    keeping = {name for name, each in footprints.items() if each.keeps_input}
    copying = {name for name in keeping if size < _FP32 and footprints[name].copies_input}
    kept += sum(size * linear_sizes(shape)[name][1] for name in copying)
    inputs = {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "down", "o_proj": None}
    shared = {inputs.get(name, "attention") for name in keeping - copying} - {None}
    return kept + sum(size * (inner if name == "down" else hidden) for name in shared)


def _transient(shape: ModelShape, trial: TrialConfig, tokens: int) -> float:
    """Bytes that a layer's backward pass holds only briefly.

    The MLP's gradients, and a matrix of 4 bits.
    """
    size = _bytes(trial)
    cast = _FP32 * shape.intermediate if size < _FP32 and not trial.method.changes_base else 0
    gradients = tokens * (size * (shape.intermediate + 2 * shape.hidden) + cast)
    return gradients + _unpacked(shape, trial)


def _unpacked(shape: ModelShape, trial: TrialConfig) -> float:
    """Bytes of the largest matrix of 4 bits in the dtype that its product is computed in."""
    return max(linear_weights(shape)) * _bytes(trial) if trial.model.load_in_4bit else 0.0


def _head(shape: ModelShape, trial: TrialConfig, tokens: int) -> float:
    """Logits, the hidden states' gradient, and the head's if it is trained.

    Of the model's logits a tile; whole, with what is computed from them, if the loss reads them.
    """
    size, loss = _bytes(trial), trial.loss
    tile = float(min(tokens, _TILE_TOKENS) * _TILE_WORDS * size)
    if loss.reads_logits or loss.reads_base:
        copies = _LOGITS_COPIES + _BASE_COPIES * loss.reads_base
        tile = float(tokens * shape.vocabulary * copies * _FP32)
    weight = shape.vocabulary * shape.hidden * _FP32 if trial.method.changes_base else 0
    return tile + tokens * shape.hidden * (_FP32 + size) + weight


def _evaluation(shape: ModelShape, trial: TrialConfig) -> float:
    """The more of two: a batch in one layer with all layers' keys and values, or logits.

    Prompts are taken to be as long as the training data. Logits are in the model's dtype, in fp32
    if that differs, and as log-softmax, a tile of tokens at a time.
    """
    length, suite, size = trial.data.max_length, trial.eval, _bytes(trial)
    if suite.general_text:
        length = max(length, GENERAL_TEXT_TOKENS)
    tokens = suite.batch_size * length
    layer = size * (4 * shape.hidden + 3 * shape.intermediate)
    cache = size * 2 * shape.layers * shape.kv_heads * shape.head_size
    copies = 2 if size < _FP32 else 1
    logits = min(tokens * shape.vocabulary, LOGITS_AT_ONCE) * (size + copies * _FP32)
    in_a_layer = tokens * (layer + cache) + _unpacked(shape, trial)
    return float(max(in_a_layer, tokens * 2 * size * shape.hidden + logits))


def _bytes(trial: TrialConfig) -> int:
    return _BYTES[trial.model.dtype]
