"""Training data: rows to prompt and completion, to tokens with the loss on the completion alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from trainables.config import DataConfig
from trainables.errors import Fault, UserError
from trainables.locations import is_local, resolve

Row = dict[str, Any]
IGNORED_LABEL = -100
_MAX_FAULTS = 5


class Sample(TypedDict):
    """One tokenised sample; label `IGNORED_LABEL` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenizedData:
    """Both splits, and how many rows were longer than `max_length` and left out."""

    train: list[Sample]
    validation: list[Sample]
    skipped: int
    prompts: list[str]


def load_rows(data: DataConfig, path: str | None = None) -> list[Row]:
    """Read the rows of a local file or a hub data set.

    Raises:
        UserError: a file is missing, empty or malformed (with its line).
    """
    location = path or data.path
    if not is_local(location):
        import datasets

        hub = datasets.load_dataset(location, data.subset, split=data.split)
        rows = [dict(row) for row in (hub.select(range(data.limit)) if data.limit else hub)]
    else:
        file = Path(resolve(location)).expanduser()
        if not file.is_file():
            raise UserError(
                [Fault("data.path", f"no such file: {file}", "give a .jsonl or .parquet file")]
            )
        rows = _read_parquet(file) if file.suffix == ".parquet" else _read_jsonl(file)
    if not rows:
        raise UserError([Fault("data.path", f"holds no rows: {location}")])
    return rows[: data.limit]


def _read_jsonl(file: Path) -> list[Row]:
    rows: list[Row] = []
    faults: list[Fault] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = error.msg
            if isinstance(row, dict):
                rows.append(row)
            else:
                why = row if isinstance(row, str) else f"a {type(row).__name__}"
                faults.append(
                    Fault(
                        "data.path",
                        f"each line must be a JSON object, got {why}",
                        location=f"{file}:{number}",
                    )
                )
    if faults:
        raise UserError(_first(faults))
    return rows


def _read_parquet(file: Path) -> list[Row]:
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(file).to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise UserError([Fault("data.path", f"is no Parquet file: {file} ({error})")]) from error


def _first(faults: list[Fault]) -> list[Fault]:
    rest = len(faults) - _MAX_FAULTS
    if rest <= 0:
        return faults
    return [*faults[:_MAX_FAULTS], Fault(faults[0].field, f"{rest} more like these")]


_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def template_fields(template: str) -> set[str]:
    """Names of the row's fields a template uses.

    Raises:
        jinja2.TemplateError: the template is malformed.
    """
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(template))


def check_templates(data: DataConfig, rows: Iterable[Row]) -> list[Fault]:
    """Faults of the templates against the rows: malformed ones, and absent fields."""
    faults: list[Fault] = []
    for field, template in (("data.prompt", data.prompt), ("data.completion", data.completion)):
        try:
            wanted = template_fields(template)
        except TemplateError as error:
            faults.append(Fault(field, f"is no valid template: {error}"))
            continue
        for index, row in enumerate(rows):
            if absent := sorted(wanted - row.keys()):
                faults.append(
                    Fault(
                        field,
                        f"names {', '.join(absent)}, absent from row {index + 1} of {data.path}",
                        f"the row has {', '.join(map(str, row)) or 'no fields'}",
                    )
                )
                break
    return faults


def render(data: DataConfig, rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Yield (prompt, completion) of each row.

    Raises:
        UserError: a template cannot be rendered on a row.
    """
    prompt = _ENVIRONMENT.from_string(data.prompt)
    completion = _ENVIRONMENT.from_string(data.completion)
    for index, row in enumerate(rows):
        try:
            yield prompt.render(row), completion.render(row)
        except (TemplateError, TypeError, LookupError) as error:
            raise UserError(
                [Fault("data.prompt", f"cannot be rendered on row {index + 1}: {error}")]
            ) from error


def tokenize(data: DataConfig, tokenizer: Any, seed: int) -> TokenizedData:
    """Load, render, tokenise and split.

    The split is drawn from `seed`, which should be the sweep's, so that every trial trains on the
    same rows.

    Raises:
        UserError: faults of files and templates, or no sample is short enough.
    """
    rows = load_rows(data)
    if faults := check_templates(data, rows):
        raise UserError(faults)
    texts = list(render(data, rows))
    if data.validation_path:
        held_out = list(render(data, load_rows(data, data.validation_path)))
    else:
        random.Random(seed).shuffle(texts)  # noqa: S311 - a split, not a secret
        count = round(len(texts) * data.validation_fraction)
        held_out, texts = texts[:count], texts[count:]
    train = [_encode(tokenizer, data, *text) for text in texts]
    validation = [_encode(tokenizer, data, *text) for text in held_out]
    kept = [sample for sample in train if len(sample["input_ids"]) <= data.max_length]
    if not kept:
        raise UserError(
            [
                Fault(
                    "data.max_length",
                    f"every one of the {len(train)} samples is longer than {data.max_length} "
                    "tokens",
                    "raise it",
                )
            ]
        )
    return TokenizedData(
        train=kept,
        validation=[s for s in validation if len(s["input_ids"]) <= data.max_length],
        skipped=len(train) - len(kept),
        prompts=[prompt_text(tokenizer, data, prompt) for prompt, _ in held_out or texts],
    )


def prompt_text(tokenizer: Any, data: DataConfig, prompt: str) -> str:
    """The text before the completion: the prompt, in the chat template where one is asked for."""
    if not data.chat_template:
        return prompt
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    )


def _encode(tokenizer: Any, data: DataConfig, prompt: str, completion: str) -> Sample:
    """Tokenise prompt + completion + end-of-sequence; the loss is on what follows the prompt.

    Both are encoded together and cut at the prompt's own length, as the harness does, so that
    training and evaluation see the same tokens.
    """
    context = prompt_text(tokenizer, data, prompt)
    spaces = len(context) - len(context.rstrip())
    if spaces:  # a trailing space belongs to the first token of the completion
        context, completion = context[:-spaces], context[-spaces:] + completion
    special = not data.chat_template  # a chat template writes its special tokens itself
    prompt_ids = tokenizer(context, add_special_tokens=special)["input_ids"]
    ids = tokenizer(context + completion, add_special_tokens=special)["input_ids"]
    if ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    start = min(len(prompt_ids), len(ids) - 1)
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * start + ids[start:]}
