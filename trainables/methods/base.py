"""`Method`: how a model is made trainable, and all that the project asks a method.

Importing a method loads no heavy library: what needs PEFT or torch imports it where it is used.

Shapes: O outputs and I inputs of a linear layer, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator

from trainables.decoder_shape import ModelShape
from trainables.errors import nearest
from trainables.named import Named


def _module_choice(value: Any) -> Any:
    is_list = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    if value != "all-linear" and not (is_list and value):
        remedy = "a list of two reads [q_proj, v_proj], and [[q_proj, v_proj]] as the only choice"
        if value == "all" or nearest(value, ["all-linear"], 0.8):  # LLaMA-Factory says all
            remedy = "did you mean all-linear?"
        raise ValueError(f"must be all-linear or a list of module names, got {value!r}; {remedy}")
    # The order of the names does not matter, nor does a list around all-linear.
    return (
        "all-linear" if set(value) == {"all-linear"} or not is_list else tuple(sorted(set(value)))
    )


Modules = Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_module_choice)]
"""Names of modules, or `all-linear`: all linear layers except the output head."""


@dataclass(frozen=True)
class Capacity:
    """How much a method can change: the axis that its trials are ordered by.

    Attributes:
        name: of the field, in words: `rank`, `block size`.
        number: its value.
        order: rises with the number of trained parameters.
    """

    name: str
    number: int
    order: float

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


@dataclass(frozen=True)
class Ratio:
    """A searched axis that gives one field as a multiple of another: alpha = ratio x rank."""

    axis: str
    field: str
    of: str


@dataclass(frozen=True)
class Footprint:
    """What one adapted layer keeps for the backward pass beside the base's own activations.

    Attributes:
        per_token: numbers for each token, in the base's dtype.
        per_token_fp32: numbers for each token, in fp32.
        mask: numbers of one byte for each token, such as dropout's mask.
        per_layer: numbers for the layer as a whole, in fp32.
        matrices: numbers for the layer as a whole, in the base's dtype.
        brief: numbers in fp32 for the layer, but only while it is computed.
        brief_per_token: numbers in fp32 for each token, but only while the layer is computed.
        keeps_input: whether it keeps its input, which a frozen linear layer does not.
        copies_input: whether, on a base in 16 bits, it keeps a copy of its own, as adapters in fp32
            do; otherwise it shares it with layers of the same input.
    """

    per_token: float = 0
    per_token_fp32: float = 0
    mask: float = 0
    per_layer: float = 0
    matrices: float = 0
    brief: float = 0
    brief_per_token: float = 0
    keeps_input: bool = True
    copies_input: bool = True


@dataclass(frozen=True)
class Seen:
    """What passed through a linear layer of the base for one sample of T tokens.

    Attributes:
        inputs_TI: its inputs, in fp32.
        is_learned_T: which tokens have a label.
        gradients_TO: of the sample's mean loss by its outputs, in fp32; None unless asked for.
    """

    inputs_TI: Any
    is_learned_T: Any
    gradients_TO: Any = None


@dataclass(frozen=True)
class LowRankLayout:
    """An adapter that can train in a slot: W0 + s B A with dropout before A (`packing.adapters`).

    Attributes:
        rank: of A (R, I) and B (O, R). Adapters of equal `key` are computed together.
        scaling: s.
        dropout: share of the inputs that is dropped.
        trained: how many of the first rows of A and columns of B are trained; None: all.
    """

    rank: int
    scaling: float
    dropout: float = 0.0
    trained: int | None = None

    @property
    def key(self) -> int:
        """What adapters that are rows of one matrix have in common."""
        return self.rank


class Method(Named):
    """How a model is made trainable; one subclass and one file a method.

    A method's fields are what a trial is given. From them come the axes of its search space, the
    columns of tables, and the error messages. `tests/integration/test_method_contract.py` holds
    what every method must do.

    Attributes:
        capacity_field: the field by which trials are ordered; None for a method of one size.
        capacity_falls: whether the trained parameters fall as that field rises.
        ratios: axes that stand for a field.
        label_fields: fields that labels name beside the capacity.
        changes_base: whether it trains the base's own weights, on a copy of its own, under
            DeepSpeed; otherwise it puts an adapter on the base that a process shares.
        starts_at_base: whether the model at the start computes what the base does.
        starts_from: samples from which `start_layer` computes the start, if it needs any: of
            `eval.general_text`, or of the training data.
        reads_gradients: whether `observe` needs the gradients of those samples.
        merges: whether the trained model can be written as plain weights of the base.
        takes_4bit: whether it trains on a base in 4 bits.
        served_by_vllm: whether vLLM serves what it saves without merging.
        in_peft: whether PEFT has it; else `trainables.tuners` adds it there when it is imported.
        scaled: parts of the names of the parameters that are multiplied to change the update's
            strength, such as one of two factors.
        scaled_degree: power of those in the update: 2 if they are in both of its factors.
        interpolated: parts of the names of the parameters that go from what they were before
            training to what they are after it, number by number; "" is in all names.
        scales_linearly: whether W at a strength is W0 + strength x dW; else it goes along a path of
            its own, such as a rotation by a share of the angle.
    """

    capacity_field: ClassVar[str | None] = None
    capacity_falls: ClassVar[bool] = False
    ratios: ClassVar[tuple[Ratio, ...]] = ()
    label_fields: ClassVar[tuple[str, ...]] = ()
    changes_base: ClassVar[bool] = False
    starts_at_base: ClassVar[bool] = True
    starts_from: ClassVar[Literal["general_text", "data"] | None] = None
    reads_gradients: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    takes_4bit: ClassVar[bool] = False
    served_by_vllm: ClassVar[bool] = False
    in_peft: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ()
    scaled_degree: ClassVar[int] = 1
    interpolated: ClassVar[tuple[str, ...]] = ()
    scales_linearly: ClassVar[bool] = True

    @classmethod
    def example(cls) -> Self:
        """Settings that fit a model of 128 dimensions, as the contract suite trains them.

        Fields without a default are 4, or 8.0 if they need not be whole.
        """
        required = {n: f.annotation for n, f in cls.model_fields.items() if f.is_required()}
        return cls(**{name: 4 if kind is int else 8.0 for name, kind in required.items()})

    @property
    def capacity(self) -> Capacity | None:
        """The capacity; None for a method of one size."""
        if self.capacity_field is None:
            return None
        number = getattr(self, self.capacity_field)
        name = self.capacity_field.replace("_", " ")
        return Capacity(name, number, -number if self.capacity_falls else number)

    @property
    def modules(self) -> Literal["all-linear"] | tuple[str, ...] | None:
        """The modules that it is put on; None if it has no such choice."""
        return getattr(self, "target_modules", None)

    @property
    def scale(self) -> float | None:
        """What a learning rate is multiplied by to compare it across settings; None: nothing is.

        For LoRA the scaling: steps of the update B A grow with rate x scaling.
        """
        return None

    @property
    def columns(self) -> dict[str, Any]:
        """The settings as columns of tables, by field, with the scale if it has one."""
        scale = {} if self.scale is None else {"scaling": self.scale}
        return {**{field: getattr(self, field) for field in type(self).model_fields}, **scale}

    @property
    def label(self) -> str:
        """The capacity and the `label_fields`, such as `rank 8, alpha 16`; may be empty."""
        named = [
            f"{field.replace('_', ' ')} {getattr(self, field):g}" for field in self.label_fields
        ]
        return ", ".join([*([str(self.capacity)] if self.capacity else []), *named])

    @property
    def smallest(self) -> Method:
        """The same choice of layers and options, as small as can be, to try on a base."""
        return self

    def parameters(self, shape: ModelShape) -> int:
        """Number of trained parameters on a decoder of this shape."""
        raise NotImplementedError

    def misfit(self, shape: ModelShape) -> str | None:
        """Why these settings cannot be used on a decoder of this shape; None if they can."""
        return None

    def frozen_parameters(self, shape: ModelShape) -> int:
        """Numbers that the method keeps in memory beside the base without training them."""
        return 0

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """What an adapted layer (O, I) keeps in training; None if that is not known."""
        return None

    def peft_config(self, steps: int) -> Any:
        """The adapter as PEFT's configuration, for a training of so many optimizer steps."""
        raise NotImplementedError

    @property
    def packed(self) -> LowRankLayout | str:
        """How it trains in a slot, or why it cannot."""
        return "its layers are not batched over trials"

    def observe(self, seen: Seen) -> Any:
        """What a layer's start is computed from, of one sample; `start_layer` gets the mean."""
        raise NotImplementedError

    def start_layer(self, layer: Any, weight_OI: Callable[[], Any], observed: Any) -> None:
        """Change a fresh adapter's layer before training.

        Args:
            layer: PEFT's.
            weight_OI: gives W0 (O, I).
            observed: the mean of `observe` over the samples; None unless it `starts_from` some.
        """

    def trained_numbers(self, parameter: str, numbers: int) -> int:
        """How many of a trained parameter's numbers are trained."""
        return numbers

    def is_trained(self, parameter: str) -> bool:
        """Whether a parameter of the adapter, by its name, is trained."""
        return True

    def rate(self, parameter: str) -> float:
        """A parameter's learning rate as a multiple of the trial's."""
        return 1.0

    def penalty(self, model: Any) -> Any:
        """A term added to the loss of a step, a scalar tensor; None if there is none."""
        return None

    def before_step(self, model: Any) -> None:
        """Change the gradients, after clipping and before the optimizer uses them."""

    def after_step(self, model: Any, step: int) -> None:
        """Change the model after an optimizer step (from 1), while it still has the gradients."""

    def restarts_optimizer(self, model: Any, step: int) -> bool:
        """Whether Adam's moments and step count start at zero again after this step (from 1)."""
        return False

    def extra_state(self, model: Any) -> dict[str, Any]:
        """Tensors that a resumed training needs beside parameters and moments, by any name."""
        return {}

    def load_extra_state(self, model: Any, tensors: dict[str, Any]) -> None:
        """Restore what `extra_state` gave, on a fresh adapter, before parameters and moments."""

    @property
    def why_not_scaled(self) -> str | None:
        """Why a trained model has no other strength than 1; None if it has."""
        return None

    @property
    def why_not_repaired(self) -> str | None:
        """Why its trained weights cannot be repaired (see `post_steps`); None if they can."""
        return None if self.changes_base else f"{self.title} is neither low-rank nor a whole model"

    @property
    def needs_start(self) -> bool:
        """Whether `at_strength` needs the values before training."""
        return bool(self.interpolated)

    def at_strength(
        self, tensors: Mapping[str, Any], start: Mapping[str, Any], strength: float
    ) -> dict[str, Any]:
        """The trained parameters of an update that is `strength` times as large.

        Args:
            tensors: the trained parameters by their full names, as in the model or as saved.
            start: what they were before training, by the same names, if `needs_start`.
            strength: 0 is the base, 1 the trained model.

        Returns:
            Those that change, in their own dtype.
        """
        factor = strength ** (1 / self.scaled_degree)
        changed = {}
        for name, values in tensors.items():
            if any(part in name for part in self.scaled):
                changed[name] = values * factor
            elif self.needs_start and any(part in name for part in self.interpolated):
                between = start[name].float().lerp(values.float(), strength)
                changed[name] = between.to(values.dtype)
        return changed

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """The update of one matrix from what was saved for it.

        Args:
            tensors: float32, by the last parts of their names, such as `lora_A.weight`.
            base_OI: W0 (O, I), float32.

        Returns:
            B (O, R), with the scaling folded in, and A (R, I) with dW = B A; or dW (O, I); or None,
            in which case the adapter is merged to see it.
        """
        return None
