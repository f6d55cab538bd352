"""The space of a recipe: a class for each method and each loss, made from the fields of theirs.

A field of type T becomes an axis of values of type T; one value is a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from trainables.config import Frozen, TrainConfig
from trainables.losses import LOSSES, Loss
from trainables.losses.sft import Sft
from trainables.methods import METHODS, Method
from tune.config.choices import Choices, Count, Decay, LearningRates, Rate, Share

PARAMETERS = "parameters"


class LossSpace(Frozen):
    """The axes of a loss."""

    model_config = ConfigDict(allow_inf_nan=False)

    def choices(self) -> Iterator[tuple[str, Any]]:
        """Every axis with its choices."""
        yield from self


class _Losses(Frozen):
    """The losses of a recipe; each field is a loss's space."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if not self.spaces:
            raise ValueError(f"must name a loss at least; known: {', '.join(LOSSES.names)}")
        return self

    @model_serializer(mode="wrap")
    def _given(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: space for name, space in fields(self).items() if space is not None}

    @property
    def spaces(self) -> dict[str, LossSpace]:
        """The space of each loss that is given, by its name."""
        return {name: space for name, space in self if space is not None}


def _by_loss(value: Any) -> Any:
    """A name or a list of names stands for those losses with their defaults."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return {name: {} for name in names}
    if isinstance(value, dict):
        return {name: {} if own is None else own for name, own in value.items()}
    return value


def _axes(kind: type[Method] | type[Loss]) -> dict[str, Any]:
    """Type and default of the axis of each field, for `create_model`."""
    return {
        name: (
            Choices[_value_type(field)],  # type: ignore[misc]
            ... if field.is_required() else (field.get_default(call_default_factory=True),),
        )
        for name, field in kind.model_fields.items()
    }


def _value_type(field: FieldInfo) -> Any:
    """A field's type with its bounds and validators."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


LOSS_SPACES: dict[str, type[LossSpace]] = {
    loss.name: create_model(f"{loss.__name__}Space", __base__=LossSpace, **_axes(loss))
    for loss in LOSSES
}
_FIELDS: dict[str, Any] = {name: (space | None, None) for name, space in LOSS_SPACES.items()}
_LossSpaces = create_model("LossSpaces", __base__=_Losses, **_FIELDS)


class RecipeSpace(Frozen):
    """The axes of every recipe; one value is a constant.

    Attributes:
        method: by name; default the recipe's own name.
        loss: a name, several names to search, or axes by name: `{talr: {floor: [0.01, 0.1]}}`.
        learning_rate: `{low, high}` on a log scale, or a list of values.
        batch_size, epochs, warmup, weight_decay: replace those of `train`.
        replay_share, replay_control: replace those of `data.replay`; a share of 0 replays nothing.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    kind: ClassVar[type[Method]]

    method: str
    loss: Annotated[_Losses, BeforeValidator(_by_loss)]
    learning_rate: LearningRates
    batch_size: Choices[Count] | None = None
    epochs: Choices[Rate] | None = None
    warmup: Choices[Share] | None = None
    weight_decay: Choices[Decay] | None = None
    replay_share: Choices[Share] | None = None
    replay_control: Choices[bool] | None = None

    @model_validator(mode="after")
    def _one_axis_for_each_field(self) -> Self:
        rules, remedy = [], ""
        for field, other in alternatives(self.kind).items():
            given = [axis for axis in (field, other) if getattr(self, axis) is not None]
            if len(given) == 2 or (not given and self.kind.model_fields[field].is_required()):
                got = "both" if given else "neither"
                remedy = "; null takes one back" if given else remedy
                rules.append(f"exactly one of {field} and {other}, got {got}")
        if rules:
            raise ValueError(f"give {', and '.join(rules)}{remedy}")
        return self

    @property
    def losses(self) -> dict[str, LossSpace]:
        """The space of each loss, by its name."""
        return self.loss.spaces

    @property
    def capacities(self) -> tuple[str, tuple[int, ...]]:
        """The axis that sets the capacity, in words, and its choices; empty without one."""
        field = self.kind.capacity_field
        for axis in (field, PARAMETERS) if field else ():
            if choices := getattr(self, axis):
                return axis.replace("_", " "), choices
        return "", ()

    def method_choices(self) -> Iterator[tuple[str, Any]]:
        """Every axis of the method that is given or has a default, with its choices."""
        for axis in type(self).model_fields:
            if axis not in RecipeSpace.model_fields and (choices := getattr(self, axis)):
                yield axis, choices

    def choices(self) -> Iterator[tuple[str, Any]]:
        """The axes of the method, then those of its training, without those of losses."""
        yield from self.method_choices()
        yield from self.training_choices()

    def training_choices(self) -> Iterator[tuple[str, Any]]:
        """The axes of the training that are given, with their choices."""
        for axis in ("learning_rate", *TRAIN_AXES, *REPLAY_AXES):
            if (choices := getattr(self, axis)) is not None:
                yield axis, choices

    @classmethod
    def read(cls, axis: str, value: Any) -> Any:
        """A value of an axis as a trial is given it.

        Raises:
            ValidationError: it is none.
        """
        (read,) = _reader(cls, axis).validate_python([value])
        return read


def alternatives(kind: type[Method]) -> dict[str, str]:
    """By field of a method: the axis that may stand for it."""
    capacity = {} if kind.capacity_field is None else {kind.capacity_field: PARAMETERS}
    return capacity | {ratio.field: ratio.axis for ratio in kind.ratios}


# Axes that replace a key of `train`.
TRAIN_AXES = tuple(axis for axis in RecipeSpace.model_fields if axis in TrainConfig.model_fields)

# Axes that replace a key of `data.replay`, and the key.
REPLAY_AXES = {"replay_share": "share", "replay_control": "control"}


def _reader(cls: type[RecipeSpace], axis: str) -> TypeAdapter[Any]:
    return TypeAdapter(_value_type(cls.model_fields[axis]))


def _space_of(method: type[Method]) -> type[RecipeSpace]:
    """The class of a method's spaces: its capacity first, then ratios, then other fields."""
    axes, instead = _axes(method), alternatives(method)
    ordered: dict[str, Any] = {}
    for field, other in instead.items():
        value = Count if other == PARAMETERS else Rate
        ordered[field] = (axes[field][0] | None, None)
        ordered[other] = (Choices[value] | None, None)  # type: ignore[valid-type]
    space = create_model(
        f"{method.__name__}Space",
        __base__=RecipeSpace,
        method=(str, method.name),
        loss=(Annotated[_LossSpaces, BeforeValidator(_by_loss)], _LossSpaces(**{Sft.name: {}})),
        **ordered,
        **{axis: axes[axis] for axis in axes if axis not in instead},
    )
    space.kind = method
    return space


SPACES: dict[str, type[RecipeSpace]] = {method.name: _space_of(method) for method in METHODS}
