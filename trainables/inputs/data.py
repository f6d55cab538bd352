"""Training data: rows to prompt and completion, to tokens with the loss on the completion only.

A prompt is a text, or the turns of a chat before the answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainables.config import DataConfig
from trainables.errors import Fault, UserError, hub_remedy
from trainables.files.locations import is_local, resolve

Row = dict[str, Any]
Turns = list[dict[str, Any]]
Prompt = str | Turns
IGNORED_LABEL = -100
Source = Literal["path", "validation_path"]
SOURCES: tuple[Source, ...] = ("path", "validation_path")
_TEMPLATES = ("prompt", "completion")
# What a template, which is the user's code, can raise.
_TEMPLATE_FAILS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
)
_MAX_FAULTS = 5
_OTHER_FORMAT = (
    "convert CSV or a JSON array by pandas: read_csv or read_json, then "
    'to_json("train.jsonl", orient="records", lines=True)'
)


class Sample(TypedDict):
    """One tokenised sample; label `IGNORED_LABEL` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenizedData:
    """Both splits, and how many rows were longer than `max_length` and left out."""

    train: Sequence[Sample]
    validation: list[Sample]
    skipped: int
    prompts: list[str]


def load_rows(data: DataConfig, source: Source = "path") -> list[Row]:
    """Read the rows of a local file or a hub data set.

    Args:
        data: what to read.
        source: the field of `data` that names it.

    Raises:
        UserError: a file is missing, empty or malformed (with its line).
    """
    field, location = f"data.{source}", str(getattr(data, source))
    if is_local(location):
        try:
            file = Path(resolve(location)).expanduser()
        except ModuleNotFoundError as error:
            raise UserError([Fault(field, str(error))]) from error
        if not file.is_file():
            raise UserError([Fault(field, f"no such file: {file}", "give a .jsonl or .parquet")])
        read = _read_parquet if file.suffix == ".parquet" else _read_jsonl
        rows = read(file, field)
    else:
        rows = _read_hub(location, data, field)
    if not rows:
        raise UserError([Fault(field, f"holds no rows: {location}")])
    return rows[: data.limit]


def _read_hub(name: str, data: DataConfig, field: str) -> list[Row]:
    import datasets

    split = data.split
    if field == "data.validation_path":
        split = data.validation_split or split
    try:
        hub = datasets.load_dataset(name, data.subset, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: one with a script
        rule = f"cannot load data set {name}: {error}"
        raise UserError([Fault(field, rule, hub_remedy(error))]) from error
    limit = len(hub) if data.limit is None else min(data.limit, len(hub))
    return [dict(row) for row in hub.select(range(limit))]


def _read_jsonl(file: Path, field: str) -> list[Row]:
    rows: list[Row] = []
    faults: list[Fault] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                problem = "text that is not UTF-8"
            except json.JSONDecodeError as error:
                problem = f"{line[:40].decode(errors='replace').rstrip()!r} ({error.msg})"
            else:
                if isinstance(row, dict):
                    rows.append(row)
                    continue
                problem = f"a {type(row).__name__}"
            faults.append(
                Fault(
                    field,
                    f"each line must be a JSON object, got {problem}",
                    _OTHER_FORMAT if number == 1 else "",
                    location=f"{file}:{number}",
                )
            )
    if faults:
        raise UserError(_first(faults))
    return rows


def read_general_text(location: str) -> list[str]:
    """Documents of a text file (one per line) or of a JSONL file's `text` fields.

    Raises:
        UserError: it cannot be read, or a line has no text.
    """
    field = "eval.general_text"
    try:
        file = Path(resolve(location)).expanduser()
        if file.suffix != ".jsonl":
            return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        rows = _read_jsonl(file, field)
    except (ModuleNotFoundError, OSError, UnicodeDecodeError) as error:
        raise UserError([Fault(field, f"cannot be read: {location} ({error})")]) from error
    for number, row in enumerate(rows, start=1):
        if "text" not in row:
            rule = f"each row must have a field `text`, row {number} has none"
            raise UserError([Fault(field, rule, location=str(file))])
    return [str(row["text"]) for row in rows]


def _read_parquet(file: Path, field: str) -> list[Row]:
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(file).to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError([Fault(field, f"is no Parquet file: {file} ({error})")]) from error


def _first(faults: list[Fault]) -> list[Fault]:
    rest = len(faults) - _MAX_FAULTS
    if rest <= 0:
        return faults
    return [*faults[:_MAX_FAULTS], Fault(faults[0].field, f"{rest} more like these")]


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def template_fields(template: str) -> set[str]:
    """Names of the row's fields that a template uses.

    Raises:
        jinja2.TemplateError: the template is malformed.
    """
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(template))


def check_templates(data: DataConfig, rows: Sequence[Row], source: Source = "path") -> list[Fault]:
    """Faults of the templates on the rows: malformed templates, and absent fields.

    A field that a template uses only if it is defined may be absent. For chats: absent or malformed
    turns, and those without an answer at the end.
    """
    if data.messages is not None:
        return _first(list(_faults_of_chats(data, data.messages, rows, source)))
    faults: list[Fault] = []
    for name in _TEMPLATES:
        field, text = f"data.{name}", getattr(data, name)
        try:
            wanted = template_fields(text)
            template = _ENVIRONMENT.from_string(text)
        except TemplateError as error:
            faults.append(Fault(field, f"is no valid template: {error}"))
            continue
        for index, row in enumerate(rows):
            absent = sorted(wanted - row.keys())
            if absent and _needs_more_than(template, row):
                faults.append(
                    Fault(
                        field,
                        f"names {', '.join(absent)}, absent from row {index + 1} of "
                        f"{getattr(data, source)}",
                        f"the row has {', '.join(map(str, row)) or 'no fields'}",
                    )
                )
                break
    return faults


def _faults_of_chats(
    data: DataConfig, field: str, rows: Sequence[Row], source: Source
) -> Iterator[Fault]:
    for index, row in enumerate(rows):
        turns = row.get(field)
        where = f"row {index + 1} of {getattr(data, source)}"
        if field not in row:
            has = f"the row has {', '.join(map(str, row)) or 'no fields'}"
            yield Fault("data.messages", f"names {field}, absent from {where}", has)
            return
        if not isinstance(turns, list) or not all(map(_is_turn, turns)):
            yield Fault("data.messages", f"must be turns of a `role` and a `content`: {where}")
        elif len(turns) < 2 or turns[-1]["role"] != "assistant":
            rule = f"must end with an answer of the role assistant: {where}"
            yield Fault("data.messages", rule, "leave the row out, or cut it there")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("role", "content"))


def _needs_more_than(template: Template, row: Row) -> bool:
    try:
        template.render(row)
    except UndefinedError:
        return True
    except _TEMPLATE_FAILS:
        return False  # `render` says what is wrong
    return False


def render(data: DataConfig, rows: Iterable[Row]) -> Iterator[tuple[Prompt, str]]:
    """Yield the (prompt, completion) of each row.

    Raises:
        UserError: a template cannot be rendered on a row.
    """
    if data.messages is not None:
        for row in rows:
            *before, answer = row[data.messages]
            yield before, answer["content"]
        return
    templates = {name: _ENVIRONMENT.from_string(getattr(data, name)) for name in _TEMPLATES}
    for index, row in enumerate(rows):
        texts = []
        for name, template in templates.items():
            try:
                texts.append(template.render(row))
            except _TEMPLATE_FAILS as error:
                raise UserError(
                    [Fault(f"data.{name}", f"cannot be rendered on row {index + 1}: {error}")]
                ) from error
        yield texts[0], texts[1]


def tokenize(data: DataConfig, tokenizer: Any, seed: int) -> TokenizedData:
    """Load, render, tokenise and split.

    The split is drawn from `seed`, which should be the sweep's, so that every trial trains on the
    same rows.

    Raises:
        UserError: faults of files and templates, or every sample is too long.
    """
    rows = load_rows(data)
    if faults := check_templates(data, rows):
        raise UserError(faults)
    texts = list(render(data, rows))
    if data.validation_path:
        held_out_rows = load_rows(data, "validation_path")
        if faults := check_templates(data, held_out_rows, "validation_path"):
            raise UserError(faults)
        held_out = list(render(data, held_out_rows))
    else:
        random.Random(seed).shuffle(texts)  # noqa: S311 - a split, not a secret
        count = min(round(len(texts) * data.validation_fraction), len(texts) - 1)
        held_out, texts = texts[:count], texts[count:]
    kept, train_prompts = _short_enough(tokenizer, data, texts)
    validation, held_out_prompts = _short_enough(tokenizer, data, held_out)
    if not kept:
        raise UserError(
            [
                Fault(
                    "data.max_length",
                    f"every one of the {len(texts)} samples is longer than {data.max_length} "
                    "tokens",
                    "raise it",
                )
            ]
        )
    return TokenizedData(
        train=kept,
        validation=validation,
        skipped=len(texts) - len(kept),
        prompts=held_out_prompts or train_prompts,
    )


def _short_enough(
    tokenizer: Any, data: DataConfig, texts: Iterable[tuple[Prompt, str]]
) -> tuple[list[Sample], list[str]]:
    """Samples of at most `max_length` tokens, and the text of each before its completion."""
    samples, prompts = [], []
    for prompt, completion in texts:
        sample = _encode(tokenizer, data, prompt, completion)
        if len(sample["input_ids"]) <= data.max_length:
            samples.append(sample)
            prompts.append(prompt_text(tokenizer, data, prompt))
    return samples, prompts


def prompt_text(tokenizer: Any, data: DataConfig, prompt: Prompt) -> str:
    """The text before the completion: the prompt, in the chat template if one is used."""
    if isinstance(prompt, str) and not data.is_chat:
        return prompt
    return str(
        tokenizer.apply_chat_template(_turns(prompt), tokenize=False, add_generation_prompt=True)
    )


def _turns(prompt: Prompt) -> Turns:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _encode(tokenizer: Any, data: DataConfig, prompt: Prompt, completion: str) -> Sample:
    """Tokenise prompt + completion + end-of-sequence; the loss is on what follows the prompt.

    Both are encoded together and cut at the prompt's own length, as the harness does, so that
    training and evaluation see the same tokens. A chat template ends the turn in its own way.
    """
    context = prompt_text(tokenizer, data, prompt)
    turn = _assistant_turn(tokenizer, prompt, completion, context) if data.is_chat else None
    is_ended = turn is not None and not turn.rstrip().endswith(completion.rstrip())
    completion = completion if turn is None else turn
    spaces = len(context) - len(context.rstrip())
    if spaces:  # a trailing space belongs to the first token of the completion
        context, completion = context[:-spaces], context[-spaces:] + completion
    special = not data.is_chat  # a chat template writes its special tokens itself
    prompt_ids = context_ids(tokenizer, context, special)
    ids = tokenizer(context + completion, add_special_tokens=special)["input_ids"]
    if not is_ended and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    start = min(len(prompt_ids), len(ids) - 1)
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * start + ids[start:]}


def context_ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    """The tokens of a text that something follows, so without an end that the tokenizer adds.

    `special`: whether the tokenizer adds special tokens.
    """
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    if ids[-1:] != [tokenizer.eos_token_id]:
        return ids
    of_text = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if ids[-len(of_text) :] == of_text else ids[:-1]


def _assistant_turn(tokenizer: Any, prompt: Prompt, completion: str, context: str) -> str | None:
    """What the chat template writes after the prompt for this answer, including the turn's end.

    None if, with the answer, it renders the prompt or the answer itself differently.
    """
    turns = [*_turns(prompt), {"role": "assistant", "content": completion}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    turn = whole.removeprefix(context)
    return turn if whole.startswith(context) and completion.strip() in turn else None


def training_order(samples: int, count: int, seed: int) -> list[int]:
    """Indices of the first `count` samples that a training sees: one shuffle after another.

    The order is ours, not the trainer's, so that it is the same for any number of workers and goes
    on where it was when a training resumes from a checkpoint.
    """
    generator = random.Random(seed)  # noqa: S311 - an order, not a secret
    order: list[int] = []
    while len(order) < count:
        epoch = list(range(samples))
        generator.shuffle(epoch)
        order += epoch
    return order[:count]
