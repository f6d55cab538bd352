"""How much GPU memory a trial will take, from the shape of its model alone; never imports torch.

The peak of a worker is what stays the whole time, and the highest of what comes and goes beside it:

    static      weights, fp32 master copy, adapters, AdamW's two moments (Rajbhandari et al. 2020,
                ZeRO, 1910.02054, section 3: 2 + 4 + 4 + 4 bytes a parameter in 16 bit)
    forward     activations kept for the backward pass (Korthikanti et al. 2022, 2205.05198, section
                4, redone for gated MLPs, RMSNorm and grouped heads), then the loss in tiles
    backward    gradients, and one layer's activations again where layers are checkpointed
    update      gradients, and their fp32 copy under DeepSpeed
    evaluation  the logits of a whole batch

What each library really keeps was found by tracking every tensor of training steps on a CPU; the
tests do it again, and hold the estimate to 15 % of what they find.

Symbols: h hidden, f intermediate, a heads times head size, L layers, V vocabulary, r rank, s tokens
of a micro-batch, e bytes of a number in the model's dtype, P parameters, N workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainables.config import ModelShape, TrialConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FP32 = 4
_GENERAL_TEXT_TOKENS = 512  # as `drift.general_nll` cuts documents

# TRL's fused head projects this many tokens onto this many words at a time.
_TILE_TOKENS, _TILE_WORDS = 4096, 32768

# DeepSpeed's defaults, in elements: the buffer in which gradients are exchanged, and the most
# parameters that ZeRO-3 holds gathered at a time.
_BUCKET, _MOST_LIVE = 500_000_000, 1_000_000_000

# CUDA's context and the libraries' workspaces, and what the allocator cannot use for fragmentation.
_CONTEXT = 1 << 30
_FRAGMENTATION = 0.05


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU; see the module for what each is.

    Attributes:
        static: throughout the trial.
        forward, backward, update, evaluation: beside it, at the peak of each phase.
    """

    static: float
    forward: float
    backward: float
    update: float
    evaluation: float

    @property
    def tensors(self) -> float:
        """The highest sum of all tensors."""
        return self.static + max(self.forward, self.backward, self.update, self.evaluation)

    @property
    def peak(self) -> float:
        """What the card must have: tensors, fragmentation, CUDA's context."""
        return _on_a_card(self.tensors)

    @property
    def evaluation_peak(self) -> float:
        """The same of the evaluation alone."""
        return _on_a_card(self.static + self.evaluation)

    @property
    def phase(self) -> str:
        """Which phase decides."""
        phases = ("forward", "backward", "update", "evaluation")
        return max(phases, key=lambda phase: float(getattr(self, phase)))


def _on_a_card(tensors: float) -> float:
    return tensors * (1 + _FRAGMENTATION) + _CONTEXT


def estimate(shape: ModelShape, trial: TrialConfig) -> MemoryEstimate:
    """The memory of one worker of a trial, at the longest samples its data may have."""
    tokens = trial.train.micro_batch_size * trial.data.max_length
    states = _full_states(shape, trial) if trial.method == "full" else _lora_states(shape, trial)
    layer = tokens * _activations(shape, trial)
    transient = tokens * _transient(shape, trial) + _dora_weights(shape, trial)
    if trial.train.gradient_checkpointing:
        kept: float = tokens * shape.layers * shape.hidden * _bytes(trial)
        transient += layer
    else:
        kept = shape.layers * layer
    kept += tokens * shape.hidden * (_FP32 + 2 * _bytes(trial))  # the last norm
    earlier = states.gradients if trial.accumulation_steps > 1 else 0.0
    last_layer = 0.0 if trial.train.gradient_checkpointing else layer
    return MemoryEstimate(
        static=states.static,
        forward=earlier + kept + max(_head(shape, trial, tokens), transient) + states.buffers,
        backward=states.gradients + last_layer + transient + states.buffers,
        update=states.gradients + states.update,
        evaluation=_evaluation(shape, trial) + states.live,
    )


def fitted(shape: ModelShape, trial: TrialConfig, card: float) -> TrialConfig | None:
    """The trial in the largest portions, up to its own, that fit a card of so many bytes.

    Its micro-batch divides what a worker does per optimizer step, so that the trial's batch stays
    what it is; its evaluation's batch is halved. None where not even one sample at a time fits.
    """
    while estimate(shape, trial).evaluation_peak > card and trial.eval.batch_size > 1:
        trial = with_eval_batch(trial, trial.eval.batch_size // 2)
    per_step = trial.train.batch_size // trial.workers
    for size in range(trial.train.micro_batch_size, 0, -1):
        smaller = with_micro_batch(trial, size)
        if per_step % size == 0 and estimate(shape, smaller).peak <= card:
            return smaller
    return None


def base_peak(shape: ModelShape, trial: TrialConfig) -> float:
    """Bytes of the one card on which the untouched base is evaluated, whole, as trials will be."""
    return _on_a_card(parameters(shape) * _bytes(trial) + _evaluation(shape, trial))


def fitted_base(shape: ModelShape, trial: TrialConfig, card: float) -> TrialConfig | None:
    """The trial with the largest evaluation's batch, halved, at which a card takes the base.

    None where it does not at one sample at a time.
    """
    while base_peak(shape, trial) > card:
        if trial.eval.batch_size == 1:
            return None
        trial = with_eval_batch(trial, trial.eval.batch_size // 2)
    return trial


@dataclass(frozen=True)
class HostEstimate:
    """Bytes of the nodes' own memory that a full trial takes.

    Attributes:
        offloaded: by each worker, throughout the trial.
        checkpoint: by the first one beside it, while a checkpoint is written.
    """

    offloaded: float
    checkpoint: float


def host_estimate(shape: ModelShape, trial: TrialConfig) -> HostEstimate:
    """What DeepSpeed offloads, and the whole copy of the training that a checkpoint is made from.

    Beside the optimizer lie gradients in fp32, as it takes them, and in the model's dtype, as they
    come; below stage 3 the updated weights, too, on their way back.
    """
    assert trial.deepspeed is not None  # noqa: S101 - a full trial has it
    deepspeed, count, size = trial.deepspeed, parameters(shape), _bytes(trial)
    each = size if deepspeed.offload_parameters else 0
    if deepspeed.offload_optimizer:
        is_accumulated = deepspeed.zero_stage == 3 or trial.accumulation_steps > 1
        each += 4 * _FP32 + size * (is_accumulated + (deepspeed.zero_stage < 3))
    return HostEstimate(offloaded=each * count / trial.workers, checkpoint=3 * _FP32 * count)


def with_micro_batch(trial: TrialConfig, size: int) -> TrialConfig:
    """The same trial in other portions."""
    train = trial.train.model_copy(update={"micro_batch_size": size})
    return trial.model_copy(update={"train": train})


def with_eval_batch(trial: TrialConfig, size: int) -> TrialConfig:
    """The same trial, evaluated in other portions."""
    suite = trial.eval.model_copy(update={"batch_size": size})
    return trial.model_copy(update={"eval": suite})


def parameters(shape: ModelShape) -> int:
    """All parameters of a decoder with gated MLPs, tied weights counted once."""
    norms = 2 * shape.hidden + (2 * shape.head_size if shape.normed_heads else 0)
    per_layer = sum(rows * columns for rows, columns in _linears(shape).values()) + norms
    if shape.attention_bias:
        per_layer += (shape.heads + 2 * shape.kv_heads) * shape.head_size
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied_embeddings else 2)
    return shape.layers * per_layer + embeddings + shape.hidden


def adapter_parameters(shape: ModelShape, trial: TrialConfig) -> int:
    """R (in + out) for each adapted linear layer, and DoRA's magnitudes."""
    assert trial.lora is not None  # noqa: S101 - TrialConfig sees to it
    rank = trial.lora.rank
    adapted = [_linears(shape)[name] for name in _adapted(shape, trial)]
    magnitudes = sum(rows for rows, _ in adapted) if trial.lora.dora else 0
    return shape.layers * (sum(rank * (rows + cols) for rows, cols in adapted) + magnitudes)


@dataclass(frozen=True)
class _States:
    """Bytes of what belongs to the parameters: `live` are gathered ones, in every forward pass."""

    static: float
    gradients: float
    buffers: float = 0.0
    update: float = 0.0
    live: float = 0.0


def _lora_states(shape: ModelShape, trial: TrialConfig) -> _States:
    """The frozen base in its dtype; the adapter, its gradients and moments in fp32 (PEFT)."""
    adapter = adapter_parameters(shape, trial)
    base = parameters(shape) * _bytes(trial)
    return _States(static=base + adapter * 3 * _FP32, gradients=adapter * _FP32)


def _full_states(shape: ModelShape, trial: TrialConfig) -> _States:
    """DeepSpeed: the weights, an fp32 copy of them even where they are fp32 already, two moments.

    Stage 1 shards copy and moments over the workers, 2 the gradients too, 3 the weights too.
    What is offloaded is in the host's memory; parameters are on the GPU while they are used.
    """
    assert trial.deepspeed is not None  # noqa: S101 - a full trial has it
    deepspeed, count, size = trial.deepspeed, parameters(shape), _bytes(trial)
    stage, workers = deepspeed.zero_stage, trial.workers
    weights = 0.0 if deepspeed.offload_parameters else count * size / (workers if stage == 3 else 1)
    copies = 3 if stage else (2 if size == _FP32 else 3)
    optimizer = 0.0 if deepspeed.offload_optimizer else count * copies * _FP32
    update = 0.0 if deepspeed.offload_optimizer else float(count * _FP32)
    shards = workers if stage else 1
    is_gathered = stage == 3 and (workers > 1 or deepspeed.offload_parameters)
    live = min(count, _MOST_LIVE) * size if is_gathered else 0.0
    bucket = _BUCKET * size if stage else 0.0
    gradients = count * size / (workers if stage >= 2 else 1)
    if deepspeed.offload_optimizer and stage >= 2:  # each goes to the optimizer as it is made
        gradients = 0.0
    stays = stage == 3  # bucket and gradients are made once there, and anew each time elsewhere
    return _States(
        static=weights + optimizer / shards + (bucket + gradients if stays else 0.0),
        gradients=0.0 if stays else gradients,
        buffers=live + (bucket if stage in (1, 2) else 0.0),
        update=update / shards,
        live=live,
    )


def _activations(shape: ModelShape, trial: TrialConfig) -> float:
    """Bytes that one layer keeps of one token for the backward pass.

    Both norms keep their input in fp32, attention its query, key, value and output, the MLP gate,
    its activation and up. A linear layer keeps its input where its weight, or an adapter on it, is
    trained; an adapter in fp32 on a 16-bit base keeps a copy of its own.
    """
    hidden, inner, heads = shape.hidden, shape.intermediate, shape.heads * shape.head_size
    size = _bytes(trial)
    kept = 2 * _FP32 * hidden + size * (4 * heads + 3 * inner) + _FP32 * shape.heads
    if trial.model.attention == "eager":
        kept += shape.heads * trial.data.max_length * (_FP32 + size)
    if trial.lora is None:
        return kept + size * (4 * hidden + inner)
    linears, adapted = _linears(shape), _adapted(shape, trial)
    kept += size * trial.lora.rank * len(adapted)
    if trial.lora.dropout:
        kept += sum((1 + size) * linears[name][1] for name in adapted)
    if trial.lora.dora:
        kept += sum(size * linears[name][0] for name in adapted)
    if size < _FP32:
        return kept + sum(size * linears[name][1] for name in adapted)
    inputs = {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "down", "o_proj": None}
    shared = {inputs.get(name, "attention") for name in adapted} - {None}
    return kept + sum(size * (inner if name == "down" else hidden) for name in shared)


def _transient(shape: ModelShape, trial: TrialConfig) -> float:
    """Bytes a token of what a layer's backward pass holds for a moment: the MLP's gradients."""
    size = _bytes(trial)
    cast = _FP32 * shape.intermediate if trial.lora is not None and size < _FP32 else 0
    return size * (shape.intermediate + 2 * shape.hidden) + cast


def _dora_weights(shape: ModelShape, trial: TrialConfig) -> float:
    """DoRA takes the norm of the adapted weight, and builds it for that."""
    if trial.lora is None or not trial.lora.dora:
        return 0.0
    linears = _linears(shape)
    return 2.0 * _FP32 * max(rows * cols for rows, cols in linears.values())


def _head(shape: ModelShape, trial: TrialConfig, tokens: int) -> float:
    """One tile of logits, the hidden states' gradient, and the head's where it is trained."""
    size = _bytes(trial)
    tile = min(tokens, _TILE_TOKENS) * _TILE_WORDS * size
    weight = shape.vocabulary * shape.hidden * _FP32 if trial.method == "full" else 0
    return tile + tokens * shape.hidden * (_FP32 + size) + weight


def _evaluation(shape: ModelShape, trial: TrialConfig) -> float:
    """Logits of a batch in the model's dtype, in fp32 where that is another, and their log-softmax.

    The tasks' lengths are not known beforehand; taken is that of the training data.
    """
    length = trial.data.max_length
    if trial.eval.general_text:
        length = max(length, _GENERAL_TEXT_TOKENS)
    tokens, size = trial.eval.batch_size * length, _bytes(trial)
    layer = size * (4 * shape.hidden + 3 * shape.intermediate)
    copies = 2 if size < _FP32 else 1
    return float(tokens * (layer + shape.vocabulary * (size + copies * _FP32)))


def _linears(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Output and input size of each linear layer of a block, by the name PEFT is given."""
    heads, kv_heads = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return {
        "q_proj": (heads, shape.hidden),
        "k_proj": (kv_heads, shape.hidden),
        "v_proj": (kv_heads, shape.hidden),
        "o_proj": (shape.hidden, heads),
        "gate_proj": (shape.intermediate, shape.hidden),
        "up_proj": (shape.intermediate, shape.hidden),
        "down_proj": (shape.hidden, shape.intermediate),
    }


def _adapted(shape: ModelShape, trial: TrialConfig) -> list[str]:
    assert trial.lora is not None  # noqa: S101 - TrialConfig sees to it
    modules = trial.lora.target_modules
    return [name for name in _linears(shape) if modules == "all-linear" or name in modules]


def _bytes(trial: TrialConfig) -> int:
    return _BYTES[trial.model.dtype]
