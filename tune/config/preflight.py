"""Checks the files that a sweep file names, before anything runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from trainables.config import DataConfig
from trainables.data.rows import (
    SOURCES,
    as_replay,
    count_samples,
    load_rows,
    read_general_text,
    row_examples,
)
from trainables.errors import Fault, UserError, collecting
from trainables.models.load_errors import FETCH_AGAIN, adapter_fault
from trainables.models.model_shape import config_json
from trainables.models.quantised_files import quantisation_faults
from trainables.storage.locations import (
    PACKAGE_SCHEME,
    RELATIVE,
    absence,
    expanded,
    is_local,
    resolve,
)
from trainables.storage.storage import Location, is_address
from tune.config.deepspeed_settings import deepspeed_faults
from tune.config.input_files import named_inputs, named_paths
from tune.config.recipe_checks import base_faults
from tune.config.sweep_config import SweepConfig


def check_files(config: SweepConfig, output_dir: Location) -> int | None:
    """Read the local files that a sweep names; returns how many samples the data make.

    None if that is only known once they are tokenised: data on a hub, and texts.

    Raises:
        UserError: files are missing or malformed; names all of them.
    """
    if addresses := _addresses(config):
        raise UserError(addresses)
    samples, faults = _check_data(config.data)
    if replay := config.most_replayed.replay:
        faults += as_replay(_check_data(replay.as_data(config.data.max_length))[1])
        samples = samples and samples + replay.beside(samples)
    if missing := _missing_paths(config):
        faults += missing
    elif config.eval.general_text is not None:
        with collecting(faults):
            read_general_text(config.eval.general_text)
    faults += deepspeed_faults(config)
    if config.model.load_in_4bit and find_spec("bitsandbytes") is None:
        rule = "needs bitsandbytes, which is not installed"
        faults.append(Fault("model.load_in_4bit", rule, "pip install bitsandbytes, on every node"))
    # Fetched once: the memory estimate reads it too, and a silent hub costs seconds.
    faults += quantisation_faults(config.model, config_json(config.model, may_fetch=True))
    faults += base_faults(config)
    in_store = f"needs the sweep in a folder, got {output_dir}"
    if config.inspect and isinstance(output_dir, str):
        remedy = "leave it out; copy the sweep to a folder afterwards: `python -m analysis inspect`"
        faults.append(Fault("inspect", in_store, remedy))
    if config.repairs and isinstance(output_dir, str):
        faults.append(Fault("rewind.repair", in_store, "leave it out"))
    for field, needs_weights in (("inspect", config.inspect), ("rewind.repair", config.repairs)):
        if needs_weights and not config.train.save_weights:
            faults.append(Fault(field, "needs train.save_weights: true"))
    if faults:
        raise UserError([*dict.fromkeys(faults)])  # rows of both sources may have the same
    return samples


def _addresses(config: SweepConfig) -> list[Fault]:
    """Inputs in an object store, which are not read; only the sweep's folder may be there."""
    return [
        Fault(field, f"must be no address, got {name}", "copy it to where every node sees it")
        for field, name in named_inputs(config)
        if is_address(name) and not name.startswith(PACKAGE_SCHEME)
    ]


def _check_data(data: DataConfig) -> tuple[int | None, list[Fault]]:
    """How many samples the local files make, if that is known, and their faults."""
    samples: int | None = None
    faults: list[Fault] = []
    for source in SOURCES:
        path = getattr(data, source)
        if path is None or not is_local(path):
            continue
        with collecting(faults):
            made = row_examples(data, load_rows(data, source), source)
            if source == "path":
                samples = count_samples(data, made)
    return samples, faults


def _has_weights(folder: Path) -> bool:
    """Whether a model's folder has files of weights, which Transformers knows by their endings.

    `config.json` or an index may name some in a folder within.
    """
    return any(file.suffix in {".safetensors", ".bin"} for file in folder.rglob("*"))


def _missing_paths(config: SweepConfig) -> list[Fault]:
    faults = []
    for field, location in named_paths(config):
        try:
            path = expanded(resolve(location))
        except ModuleNotFoundError as error:
            faults.append(Fault(field, str(error)))
            continue
        if why := absence(path, "file or folder"):
            faults.append(Fault(field, f"{why}: {path}", RELATIVE))
        elif field == "model.name" and (path / "adapter_config.json").is_file():
            faults.append(adapter_fault(location))
        elif field == "model.name" and path.is_dir() and not (path / "config.json").is_file():
            faults.append(Fault(field, f"holds no config.json of a model: {path}", RELATIVE))
        elif field == "model.name" and path.is_dir() and not _has_weights(path):
            rule = f"holds no weights, in files such as model.safetensors: {path}"
            faults.append(Fault(field, rule, FETCH_AGAIN))
    return faults
