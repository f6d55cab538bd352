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
    tokenizer, folder = _tokenizer(trial.model), Path(trial.base_dir) / DATA_FOLDER
    if (folder / DATA_RECORD).exists():
        return tokenizer, with_replay(_stored(folder), trial.data.replay, trial.data_seed)
    tokenized = _tokenized(trial.model, trial.data, trial.data_seed)
    return tokenizer, with_replay(tokenized, trial.data.replay, trial.data_seed)


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
    """The data as a trial replays them, of a sweep's data, which have the largest share.

    The first of the replayed samples are those of a smaller share. A control's are drawn of the
    data themselves: each sample as often as others, and the rest of them at random by the seed.
    """
    own = len(tokenized.train) - tokenized.replayed
    extra = replay.beside(own) if replay else 0
    if extra == tokenized.replayed and not (replay and replay.control):
        return tokenized
    samples = as_dataset(tokenized.train)
    if not (replay and replay.control):
        return replace(tokenized, train=samples.select(range(own + extra)), replayed=extra)
    own_samples, drawn = samples.select(range(own)), random.Random(seed)  # noqa: S311
    rest = sorted(drawn.sample(range(own), extra % own))
    copies = [own_samples] * (1 + extra // own)
    if rest:  # copied, as lengths are read from whole tables
        copies.append(own_samples.select(rest).flatten_indices(keep_in_memory=True))
    return replace(tokenized, train=concatenate_datasets(copies), replayed=0)


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
