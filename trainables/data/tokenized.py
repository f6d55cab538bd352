"""A trial's inputs besides its model: the tokenizer, and the data as token ids.

A sweep tokenises its data once, beside the base's evaluation; its trials memory-map them from
there, so that a node holds them once. They are Arrow files, without pickle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from pyarrow.compute import list_value_length

from trainables.config import DataConfig, ModelConfig, Replay, TrialConfig
from trainables.data.dataset import Sample, TokenizedData, tokenize
from trainables.models.loading import load_tokenizer

DATA_FOLDER = "data"
DATA_RECORD = "data.json"  # written last
_SPLITS = ("train", "validation")  # files of their own
_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def trial_inputs(trial: TrialConfig) -> tuple[Any, TokenizedData]:
    """The trial's tokenizer and data, made once for the trials of a process.

    Raises:
        UserError: see `tokenize`, used for trials whose sweep has stored no data.
    """
    folder, data, seed = Path(trial.base_dir) / DATA_FOLDER, trial.data, trial.data_seed
    is_stored = (folder / DATA_RECORD).exists()
    tokenized = _stored(folder) if is_stored else _tokenized(trial.model, data, seed)
    return _tokenizer(trial.model), with_replay(tokenized, data.replay, seed)


@lru_cache(maxsize=1)
def _tokenizer(model: ModelConfig) -> Any:
    return load_tokenizer(model)


@lru_cache(maxsize=1)
def _stored(folder: Path) -> TokenizedData:
    return read_data(folder)


@lru_cache(maxsize=1)
def _tokenized(model: ModelConfig, data: DataConfig, seed: int) -> TokenizedData:
    return tokenize(data, _tokenizer(model), seed)


def with_replay(tokenized: TokenizedData, replay: Replay | None, seed: int) -> TokenizedData:
    """A trial's data, from those of its sweep, which hold the replayed samples of every share.

    A smaller share takes the first of them. A control repeats the data's own samples instead:
    all of them equally often, and the remainder drawn by the seed.
    """
    own = len(tokenized.train) - tokenized.replayed
    extra = replay.beside(own) if replay else 0
    if replay and replay.control:
        samples = _extended(as_dataset(tokenized.train).select(range(own)), extra, seed)
        return replace(tokenized, train=samples, replayed=0)
    if extra == tokenized.replayed:
        return tokenized
    samples = as_dataset(tokenized.train).select(range(own + extra))
    return replace(tokenized, train=samples, replayed=extra)


def _extended(samples: Dataset, extra: int, seed: int) -> Dataset:
    """The samples and so many more of them."""
    repeats, remainder = divmod(extra, len(samples))
    copies = [samples] * (1 + repeats)
    if remainder:
        drawn = random.Random(seed).sample(range(len(samples)), remainder)  # noqa: S311
        # Copied into a table of their own, as `longest` reads whole tables.
        copies.append(samples.select(sorted(drawn)).flatten_indices(keep_in_memory=True))
    return concatenate_datasets(copies)


def write_data(tokenized: TokenizedData, folder: Path) -> None:
    """Write data for `read_data`."""
    _write(tokenized.train, folder / "train")
    if tokenized.validation:  # the format allows no empty one
        _write(tokenized.validation, folder / "validation")
    rest = {name: value for name, value in vars(tokenized).items() if name not in _SPLITS}
    (folder / DATA_RECORD).write_text(json.dumps(rest))


def read_data(folder: Path) -> TokenizedData:
    """Data as `tokenize` returned them; training samples stay in the files, memory-mapped."""
    held_out = folder / "validation"
    return TokenizedData(
        train=load_from_disk(str(folder / "train")),
        validation=list(load_from_disk(str(held_out))) if held_out.exists() else [],
        **json.loads((folder / DATA_RECORD).read_text()),
    )


def as_dataset(samples: Sequence[Sample]) -> Dataset:
    """The samples as a data set, which stored ones are already."""
    if isinstance(samples, Dataset):
        return samples
    return Dataset.from_list([dict(sample) for sample in samples])


def longest(dataset: Dataset, count: int) -> list[int]:
    """The numbers of the longest samples, by decreasing length; of their lengths alone."""
    lengths_N = list_value_length(dataset.data.column("input_ids")).to_numpy()
    numbers: list[int] = (-lengths_N).argsort(kind="stable")[:count].tolist()
    return numbers


def _write(samples: Sequence[Sample], folder: Path) -> None:
    Dataset.from_list([dict(sample) for sample in samples], features=_FEATURES).save_to_disk(folder)
