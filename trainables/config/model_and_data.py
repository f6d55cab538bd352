"""The base model and the training data."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticUseDefault

from trainables.config.frozen import Frozen

_TAKEN_BACK = "null takes back what an extended file gives"


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
            installed Python package carries. Files in FP8 or MXFP4 are read as what they stand for;
            of others that are quantised only those of bitsandbytes in 4 bits are trained on.
        dtype: of the weights while training and evaluating.
        load_in_4bit: keep the linear layers but the output head in 4 bits (NF4, quantised twice:
            QLoRA, 2305.14314), or as they are in files of 4 bits, which need it, and compute in
            `dtype`. For LoRA alone. Scores of the base are those of its 4 bits, so forgetting is
            what the training did, not what the rounding did.
        attention: implementation handed to Transformers; by default what it takes for the model,
            sdpa where that is supported, else eager.
        trust_remote_code: run code that comes with the model. Off unless asked for. `export` and
            `inside` ask for it anew, as a sweep's folder may be somebody else's.
        revision: branch, tag or commit of a hub model.
        chat_template: Jinja file that takes the place of the tokenizer's template, as for a base
            that has none. It is saved with what is trained.
        chat_template_args: variables of its chat template, in training and evaluation alike, such
            as `{enable_thinking: false}` for a model that would else think before it answers.
        eos_token: takes the place of the tokenizer's, where chats end their turns in another one
            than the base's texts, such as `<|im_end|>`. Generation then also stops there. One must
            be named where the tokenizer has none.
        shape: for the memory estimate of a GGUF file, or of a hub model whose `config.json` is not
            on this machine and cannot be fetched. The estimate counts eager attention where
            `attention` says so.
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
        """Whether it goes with another tokenizer than the base's, which is saved with adapters."""
        return self.eos_token is not None or self.chat_template is not None

    def __hash__(self) -> int:
        """By the name alone, as a dict of variables has no hash."""
        return hash(self.name)


class DataSource(Frozen):
    """Rows, and how each becomes a sample: a prompt and a completion, a chat, or a text.

    Attributes:
        path: hub data set, or `package://PACKAGE/FILE` or local file: `.jsonl`, `.json`, `.csv`,
            `.tsv`, `.txt` (a field `text` of each line), these also with `.gz`, or `.parquet`.
        subset: configuration name of a hub data set.
        split: split of a hub data set to train on.
        prompt: Jinja template over the fields of a row, of which `{{ row['Full Question'] }}` has
            those whose names Jinja does not take. Null, as of `completion`, takes back what an
            extended sweep file gives.
        completion: Jinja template; the loss is on these tokens only. Begin it with a space where
            the evaluation puts one between question and answer, as the harness does; not in chats.
            Rows of which it makes nothing but blanks, as of null, are left out and counted, as
            below.
        chat_template: render prompt and completion as a user and an assistant turn.
        messages: field of a row that holds a whole chat, a list of turns with `role` and `content`
            (or ShareGPT's `from` and `value`) or its JSON text, instead of `prompt` and
            `completion`. The loss is on the last turn, the assistant's, its `tool_calls` and
            `reasoning_content` included. The chat template is given the row's `tools` too, if it
            has any. An assistant's turn is context, and never learned, if its `weight` is 0 (as in
            OpenAI's files), or its `train` or `training` false (Axolotl's). Chats that cannot be
            learned, as they do not end with an answer, it is blank or marked so, or the chat
            template refuses them, are left out and counted; if more than half are such, the data
            are refused.
        system: Jinja template of the system's turn, with which chats begin that have none.
        answers: learn a chat's `last` one, or `all`: each is a sample of its own, with the turns
            before it, as chat templates leave out thoughts of earlier turns. Blank ones among `all`
            are but turns before the others, and counted.
        text: field of a row that holds a text to continue the pretraining on, instead of `prompt`
            and `completion`: the loss is on all its tokens, and one longer than `max_length` is
            split into samples of that length, which are all learned. Empty ones and null make none.
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
    def _null_is_as_if_not_given(cls, template: object) -> object:
        if template is None:
            raise PydanticUseDefault
        return template

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        fields, of_templates = DataSource.model_fields, ("prompt", "completion")
        has_templates = any(getattr(self, n) != fields[n].default for n in of_templates)
        if self.messages and has_templates:
            raise ValueError(f"give messages, or prompt and completion; {_TAKEN_BACK}")
        if self.text and (self.messages or self.chat_template or has_templates):
            raise ValueError(f"give text, or messages, or prompt and completion; {_TAKEN_BACK}")
        if self.system is not None and not self.is_chat:
            raise ValueError(
                f"system must be left out where there are no chats, got {self.system!r}; set "
                "chat_template: true, or begin the prompt with it"
            )
        if self.answers == "all" and not self.messages:
            raise ValueError(
                "answers must be last without messages, got all; name the field that holds chats "
                "in messages, or leave it out"
            )
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
    """Data of another kind to train on besides, such as general ones against forgetting.

    Attributes:
        share: of all samples that are trained on; if there are too few they are repeated. The loss
            is averaged over tokens, so long answers weigh more: `replayed_tokens` of the base's
            record is their share of the tokens that are learned.
    """

    share: float = Field(gt=0, lt=1)

    def beside(self, samples: int) -> int:
        """How many to train on beside so many others."""
        return max(1, round(samples * self.share / (1 - self.share)))

    def as_data(self, max_length: int) -> DataConfig:
        """The same as training data of its own."""
        source = self.model_dump(exclude={"share"})
        return DataConfig(**source, max_length=max_length, validation_fraction=0)


class DataConfig(DataSource):
    """The training data.

    Attributes:
        validation_path: rows for the validation loss; by default `validation_fraction` of the rows.
        validation_split: split of a hub data set at `validation_path`; default `split`.
        max_length: in tokens; longer chats, and prompts with their completions, are left out and
            counted, while longer texts are split.
        replay: other data to mix in.
    """

    validation_path: str | None = None
    validation_split: str | None = None
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    max_length: int = Field(default=1024, ge=2)
    replay: Replay | None = None

    @property
    def has_chats(self) -> bool:
        """Whether the tokenizer's chat template writes any of the samples, replayed ones too."""
        return self.is_chat or (self.replay is not None and self.replay.is_chat)

    def held_out(self, rows: int) -> int:
        """How many of so many rows at `path` the validation loss is of, and not the training."""
        if self.validation_path:
            return 0
        return min(round(rows * self.validation_fraction), max(rows - 1, 0))
