"""Exports a trial's adapter or model into a folder of its own, with a model card."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from analysis.export.model_card import Kind, model_card
from analysis.export.strength import set_strength
from analysis.library_logging import quiet_libraries
from analysis.results.formatting import setting, without_controls
from analysis.results.recommendation import numbers_text
from analysis.sweeps import Sweep, check_trust
from trainables.config import ModelConfig
from trainables.errors import CannotInspect, Fault, UserError, first_line
from trainables.records.schema import TrialRecord, TrialStatus
from trainables.storage.disk import is_disk_full, whole_folder
from trainables.storage.locations import expanded, is_local

# Files that run, or that run as they are read; a trial saves none but a model's own code.
_NOT_COPIED = (".py", ".so", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def export(
    sweep: Sweep,
    record: TrialRecord,
    to: Path,
    merge: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a trial's adapter or model, with a strength of its update built in, and its card.

    The folder appears only once it is complete.

    Args:
        sweep: that of the trial.
        record: the trial, at the strength to export; see `choose_point`.
        to: a folder that is empty or does not exist yet.
        merge: merge the adapter into its base, giving a model that needs no PEFT.
        tell: called with each warning: that the recommended trial breaks a constraint, and that the
            base of an adapter is not on this machine, or is no longer the sweep's.
        trust_remote_code: run code that the base brings, and copy it beside a whole model.

    Returns:
        The folder.

    Raises:
        UserError: it has no weights or no configuration of them, nothing can be merged, the base
            that is needed for it is gone or has changed, its code is not trusted, or the target
            cannot be written to.
    """
    to = to.absolute()
    found = sweep.recommendation
    if found and found.trial.point_id == record.point_id and not found.feasible:
        tell(f"warning: trial {record.number} breaks a constraint: {found.reason}")
    weights = sweep.ledger.weights(record)
    if weights is None:
        raise UserError([_without_weights(sweep, record)])
    kind = _kind(record, merge)
    check_trust([record], trust_remote_code)
    _check_target(to)
    try:
        with whole_folder(to) as unfinished:
            _check_links(weights)
            _write_weights(kind, record, sweep.record.inputs, weights, unfinished)
            file = "adapter_config.json" if kind == "adapter" else "config.json"
            card = model_card(kind, record, sweep, _settings(unfinished / file))
            (unfinished / "README.md").write_text(without_controls(card), encoding="utf-8")
            if to.exists():
                to.rmdir()  # unless somebody has put something there meanwhile
    except OSError as error:
        from_weights = error.filename and Path(error.filename).is_relative_to(weights)
        if from_weights and not is_disk_full(error):  # in which a failed copy names both its ends
            raise _damaged(weights, error) from error
        rule = f"cannot write to {to}: {error.strerror or error}"
        raise UserError([Fault("--to", rule, "give a folder that can be written to")]) from error
    if kind == "adapter" and (reason := _why_no_base(record.config.model, sweep.record.inputs)):
        tell(f"warning: model.name: {reason}; the adapter needs the sweep's base at that path")
    return to


def export_name(sweep: Sweep, record: TrialRecord) -> str:
    """Such as `my_sweep, trial 7 at strength 0.4 (lora, rank 8, alpha 16, lr 3.2e-04)`."""
    return f"{sweep.name}, {numbers_text([record])} ({setting(record)})"


def _without_weights(sweep: Sweep, record: TrialRecord) -> Fault:
    if record.weights_dir is not None:
        why = f"this folder lacks those written to {record.weights_dir}"
    elif record.status is TrialStatus.COMPLETE:
        why = "train.save_weights is false"
    else:
        why = f"it is {record.status.in_words}, and only complete trials keep theirs"
    return Fault("--trial", f"trial {record.number} has no weights: {why}", _with_weights(sweep))


def _with_weights(sweep: Sweep) -> str:
    kept = [record for record in sweep.trials if sweep.ledger.weights(record)]
    return f"with weights: {numbers_text(kept)}" if kept else "no trial of the sweep has weights"


def _kind(record: TrialRecord, merge: bool) -> Kind:
    method = record.config.method
    what: Kind = "model" if method.changes_base else "adapter"
    if merge and (method.changes_base or not method.merges):
        lacks = "makes no adapter" if method.changes_base else "adds what no weights of it can hold"
        rule = f"cannot merge trial {record.number} into its base: {method.title} {lacks}"
        raise UserError([Fault("--merge", rule, f"leave --merge out to export its {what}")])
    return "merged" if merge else what


def _check_target(to: Path) -> None:
    if to.is_dir():
        if any(to.iterdir()):
            raise UserError([Fault("--to", f"must be empty or new, got {to}")])
    elif to.exists():
        raise UserError([Fault("--to", f"must be a folder, got the file {to}")])


def _write_weights(
    kind: Kind, record: TrialRecord, inputs: Mapping[str, str], weights: Path, to: Path
) -> None:
    model = record.config.model
    settings = _settings(weights / ("config.json" if kind == "model" else "adapter_config.json"))
    _check_whole(weights)  # in any other format, such as pickles, they are not read
    needs_base = kind == "merged" or (record.strength != 1 and record.config.method.needs_start)
    if needs_base and (reason := _why_no_base(model, inputs)):
        without = "leave --merge out" if kind == "merged" else "use --strength 1"
        remedy = f"put the sweep's base there, or {without}"
        raise UserError([Fault("model.name", reason, remedy)])
    if kind == "merged":
        with TemporaryDirectory() as scratch:
            scaled = Path(shutil.copytree(weights, scratch, dirs_exist_ok=True))
            set_strength(scaled, record)
            merge_adapter(model, scaled, to)
        return
    has_code = kind == "model" and model.trust_remote_code  # without which it could not be loaded
    for file in weights.iterdir():
        is_left_out = file.suffix in _NOT_COPIED and not (has_code and file.suffix == ".py")
        if file.is_file() and not is_left_out and file.name != "README.md":
            shutil.copyfile(file, to / file.name)
    set_strength(to, record)
    if kind == "adapter":
        named = json.dumps(settings | _base_of(model, inputs), indent=2)
        (to / "adapter_config.json").write_text(named)
        if model.has_own_tokenizer:
            _tokenizer(model, weights).save_pretrained(to)


def _check_links(weights: Path) -> None:
    """Refuse links out of the folder: who sent the sweep may mean a file of the reader's."""
    for file in weights.iterdir():
        if not (target := file.resolve()).is_relative_to(weights.resolve()):
            rule = f"its weights have a link that leaves their folder: {file} to {target}"
            remedy = "put that file in its place if it is the sweep's, else delete the link"
            raise UserError([Fault("--trial", rule, remedy)])


def _tokenizer(model: ModelConfig, weights: Path) -> Any:
    """The one saved with the weights, else the base's.

    Only a base whose code is trusted has its chat template set from the file that the sweep names:
    that may be any file of who exports.
    """
    from trainables.models.load_errors import LOAD_ERRORS
    from trainables.models.loading import load_tokenizer, saved_tokenizer

    try:
        saved = saved_tokenizer(weights)
    except LOAD_ERRORS as error:
        raise _damaged(weights, error) from error
    own = model if model.trust_remote_code else model.model_copy(update={"chat_template": None})
    return saved or load_tokenizer(own)


def _settings(file: Path) -> dict[str, Any]:
    """The configuration that was saved with the weights."""
    from trainables.inspection.saved_weights import read_config

    try:
        return read_config(file)
    except (OSError, CannotInspect) as error:
        raise _damaged(file.parent, error) from error


def _check_whole(weights: Path) -> None:
    """Refuse files that were cut off, as by a copy that broke off: nothing else would tell."""
    from trainables.inspection.saved_weights import SavedWeights

    try:
        SavedWeights(weights).check()
    except (OSError, CannotInspect) as error:
        raise _damaged(weights, error) from error


def _damaged(place: Path, error: Exception) -> UserError:
    rule = f"its weights are damaged: {place} ({first_line(error)})"
    return UserError([Fault("--trial", rule, "restore them from a copy, or give another trial")])


def _why_no_base(model: ModelConfig, inputs: Mapping[str, str]) -> str | None:
    """Why the base, if it is local, is not here, or is not the sweep's; None if it is."""
    from trainables.models.loading import changed, source

    try:
        if reason := changed(model, inputs):
            return reason
        source(model)
    except (OSError, ModuleNotFoundError) as error:
        return f"cannot find {model.name}: {error}"
    return None


def _base_of(model: ModelConfig, inputs: Mapping[str, str]) -> dict[str, str | None]:
    """The base's hub name, valid on every machine, or else its path, which may be on another."""
    from trainables.models.loading import source

    if _why_no_base(model, inputs):
        return {"base_model_name_or_path": str(expanded(model.name)), "revision": None}
    origin = source(model)
    revision = None if is_local(model.name) else model.revision
    return {"base_model_name_or_path": origin, "revision": revision}


def merge_adapter(model: ModelConfig, weights: Path, to: Path) -> None:
    """Write the base with every adapted W replaced by W + dW, in its dtype, and its tokenizer.

    W of 4 bits is what these stand for, not what they were rounded from.

    Input embedding and output head that share their weights get their own if one is adapted.

    Raises:
        UserError: the base cannot be loaded, or the adapter is damaged.
        OSError: the folder cannot be written to.
    """
    with redirect_stdout(sys.stderr), quiet_libraries():
        import torch
        from peft import PeftModel
        from safetensors import SafetensorError

        from trainables.models.four_bit import plain_model
        from trainables.models.loading import load_model

        # Merging needs neither, and what they name may be missing here.
        base = load_model(model.model_copy(update={"chat_template": None, "attention": None}))
        if model.load_in_4bit:  # else the sum would be rounded to 4 bits again
            base = plain_model(base, getattr(torch, model.dtype))
        try:
            adapted = PeftModel.from_pretrained(base, weights, torch_device="cpu")
            _untie_if_adapted(base)
            merged = adapted.merge_and_unload(safe_merge=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _damaged(weights, error) from error
        merged.save_pretrained(to)
        _tokenizer(model, weights).save_pretrained(to)


def _untie_if_adapted(base: Any) -> None:
    """Give input embedding and output head their own weights where one of them is adapted."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import Parameter

    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = [layer for layer in (embedding, head) if isinstance(layer, BaseTunerLayer)]
    if adapted and embedding.weight is head.weight:
        plain = head.get_base_layer() if head in adapted else head
        plain.weight = Parameter(plain.weight.detach().clone())
        for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
            config.tie_word_embeddings = False
