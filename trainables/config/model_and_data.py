"""The base model and the training data."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticUseDefault

from trainables.decoder_shape import ModelShape
from trainables.frozen import Frozen

_TAKEN_BACK = "null takes back what an extended file gives"


class ModelConfig(Frozen):
    """The base model.

    Attributes:
        name: hub name, local folder, `.gguf` file, or `package://PACKAGE/FILE` for a file of an
            installed Python package. FP8 and MXFP4 files are dequantised; of other quantised files
            only those of bitsandbytes in 4 bits can be trained on.
        dtype: of the weights while training and evaluating.
        load_in_4bit: keep the linear layers except the output head in 4 bits (NF4 with double
            quantisation: QLoRA, 2305.14314) and compute in `dtype`; required by files in 4 bits.
            For LoRA only. The base is evaluated in 4 bits too.
        attention: implementation for Transformers; by default sdpa where supported, else eager.
        trust_remote_code: run code that comes with the model. `export` and `inspect` need their own
            flag for it, as a sweep's folder may be somebody else's.
        revision: branch, tag or commit of a hub model.
        chat_template: Jinja file that replaces the tokenizer's template; saved with the weights.
        chat_template_args: variables of the chat template, in training and evaluation, such as
            `{enable_thinking: false}` for a model that would otherwise think before it answers.
        eos_token: replaces the tokenizer's, also as the end of generation, where chats end their
            turns with another one, such as `<|im_end|>`. Required if the tokenizer has none.
        shape: for the memory estimate of a GGUF file, or of a hub model whose `config.json` cannot
            be fetched.
    """

    name: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    load_in_4bit: bool = False
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    chat_template: str | None = None
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    eos_token: str | None = None
    shape: ModelShape | None = None

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether its tokenizer differs from the base's, so that adapters are saved with it."""
        return self.eos_token is not None or self.chat_template is not None

    def __hash__(self) -> int:
        """By the name only, as a dict has no hash."""
        return hash(self.name)


class DataSource(Frozen):
    """Rows, and how each becomes a sample: a prompt and a completion, a chat, or a text.

    Attributes:
        path: hub data set, or `package://PACKAGE/FILE` or local file: `.jsonl`, `.json`, `.csv`,
            `.tsv`, `.txt` (a field `text` of each line), these also with `.gz`, or `.parquet`.
        subset: configuration name of a hub data set.
        split: split of a hub data set to train on.
        prompt: Jinja template over the fields of a row; `{{ row['Full Question'] }}` for names
            that Jinja does not accept. Null takes back what an extended sweep file gives.
        completion: Jinja template; the loss is on these tokens only. Begin it with a space if the
            evaluation puts one between question and answer, as the harness does; not in chats.
            Rows with a blank completion are skipped and counted, as below.
        chat_template: render prompt and completion as a user and an assistant turn.
        messages: field of a row that holds a whole chat, a list of turns with `role` and `content`
            (or ShareGPT's `from` and `value`) or its JSON text, instead of `prompt` and
            `completion`. The loss is on the last turn, the assistant's, including its `tool_calls`
            and `reasoning_content`. The chat template gets the row's `tools` too. An assistant's
            turn is context only if its `weight` is 0 (OpenAI's files), or its `train` or `training`
            false (Axolotl's). Chats without an answer to learn, and those that the chat template
            refuses, are skipped and counted; if more than half are, the data are refused.
        system: Jinja template of the system's turn of chats that have none.
        answers: learn a chat's `last` one, or `all`: each is a sample of its own with the turns
            before it, as chat templates leave out thoughts of earlier turns. Blank ones are context
            only, and counted.
        text: field of a row that holds a text for continued pretraining, instead of `prompt` and
            `completion`: the loss is on all its tokens; a text longer than `max_length` is split
            into samples of that length. Empty texts are skipped.
        limit: number of rows to use, the first ones; None uses all.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    prompt: str = "{{ prompt }}"
    completion: str = "{{ completion }}"
    chat_template: bool = False
    messages: str | None = None
    system: str | None = None
    answers: Literal["last", "all"] = "last"
    text: str | None = None
    limit: int | None = Field(default=None, ge=1)

    @field_validator("prompt", "completion", mode="before")
    @classmethod
    def _null_is_the_default(cls, template: object) -> object:
        if template is None:
            raise PydanticUseDefault
        return template

    @model_validator(mode="after")
    def _has_one_kind_of_sample(self) -> Self:
        fields, names = DataSource.model_fields, ("prompt", "completion")
        has_templates = any(getattr(self, name) != fields[name].default for name in names)
        if self.messages and has_templates:
            raise ValueError(f"give messages, or prompt and completion; {_TAKEN_BACK}")
        if self.text and (self.messages or self.chat_template or has_templates):
            raise ValueError(f"give text, or messages, or prompt and completion; {_TAKEN_BACK}")
        if self.system is not None and not self.is_chat:
            rule = f"system must be left out where there are no chats, got {self.system!r}"
            raise ValueError(f"{rule}; set chat_template: true, or begin the prompt with it")
        if self.answers == "all" and not self.messages:
            remedy = "name the field that holds chats in messages, or leave it out"
            raise ValueError(f"answers must be last without messages, got all; {remedy}")
        return self

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's chat template writes the samples."""
        return self.chat_template or self.messages is not None

    @property
    def chat_field(self) -> str:
        """The field that asks for the chat template, if one does."""
        return "data.messages" if self.messages else "data.chat_template"


class Replay(DataSource):
    """Other data to mix in, such as general data against forgetting.

    Attributes:
        share: of all samples that are trained on, possibly 0; repeated if there are too few. The
            loss is averaged over tokens, so long answers weigh more: `replayed_tokens` of the
            base's record is the share of the learned tokens that the largest share has.
        control: train on as many more samples of the data themselves instead, which shows what
            more training does by itself.
    """

    share: float = Field(ge=0, lt=1)
    control: bool = False

    def beside(self, samples: int) -> int:
        """How many replayed samples to train on beside so many others."""
        return max(1, round(samples * self.share / (1 - self.share))) if self.share else 0

    def as_data(self, max_length: int) -> DataConfig:
        """The replayed data as a `DataConfig`."""
        source = self.model_dump(exclude={"share", "control"})
        return DataConfig(**source, max_length=max_length, validation_fraction=0)


class DataConfig(DataSource):
    """The training data.

    Attributes:
        validation_path: rows for the validation loss; by default `validation_fraction` of the rows.
        validation_split: split of a hub data set at `validation_path`; default `split`.
        max_length: in tokens; longer samples are skipped and counted, longer texts are split.
        replay: other data to mix in.
    """

    validation_path: str | None = None
    validation_split: str | None = None
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    max_length: int = Field(default=1024, ge=2)
    replay: Replay | None = None

    @property
    def has_chats(self) -> bool:
        """Whether the chat template writes any of the samples, including replayed ones."""
        return self.is_chat or (self.replay is not None and self.replay.is_chat)

    @property
    def replay_share(self) -> float:
        """The share of samples that `replay` adds."""
        return self.replay.share if self.replay else 0.0

    @property
    def replay_control(self) -> bool:
        """Whether these are of the data themselves."""
        return self.replay is not None and self.replay.control

    def replaying(self, **changes: Any) -> DataConfig:
        """The data with other settings of `replay`, if they have one."""
        if self.replay is None:
            return self
        return self.model_copy(update={"replay": self.replay.model_copy(update=changes)})

    def held_out(self, rows: int) -> int:
        """How many of so many rows at `path` are held out for the validation loss."""
        if self.validation_path:
            return 0
        return min(round(rows * self.validation_fraction), max(rows - 1, 0))
