"""Loading the base model and its tokenizer, once per process and once per node."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from trainables.compat.transformers import has_adapter
from trainables.config import ModelConfig
from trainables.errors import Fault, UserError, error_text, hub_remedy
from trainables.models.chat_date import freeze_chat_date
from trainables.models.four_bit import compute_in, keep_trainable, quantisation
from trainables.models.load_errors import (
    FETCH_AGAIN,
    LOAD_ERRORS,
    adapter_fault,
    loading_fault,
    tokenizer_fault,
)
from trainables.models.model_shape import config_json
from trainables.models.quantised_files import quantisation_faults, quantisation_method
from trainables.process import watchdog
from trainables.storage.disk import content_digest, whole_folder
from trainables.storage.locations import absence, expanded, is_local, node_cache, resolve

_SETTING_AT_FAULT = re.compile(r"^- `(\w+)`:", re.MULTILINE).findall


def device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer, with a padding token; its chats are of one date (see `chat_date`).

    Its chat template always has the variables of `model.chat_template_args`.

    Raises:
        UserError: it, or its chat template, cannot be loaded, or it is empty, or has no
            `model.eos_token`, or no token that ends a text.
    """
    freeze_chat_date()
    tokenizer = _load(AutoTokenizer, model)
    # Mistral's own kind, which is read from its own file alone, knows no added tokens.
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    if tokenizer.get_vocab().keys() <= added.keys():
        raise UserError([tokenizer_fault(model.name)])
    if model.eos_token is not None:
        if model.eos_token not in tokenizer.get_vocab():
            rule = f"the tokenizer of {model.name} has no token {model.eos_token}"
            raise UserError([Fault("model.eos_token", rule, "name the one that ends a turn")])
        tokenizer.eos_token = model.eos_token
    if tokenizer.eos_token_id is None:
        rule = f"is not set, and the tokenizer of {model.name} names no token that ends a text"
        names = tokenizer.sep_token or tokenizer.pad_token
        remedy = f"name one{f', as {names}' if names else ''}"
        raise UserError([Fault("model.eos_token", rule, remedy)])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.chat_template is not None:
        tokenizer.chat_template = _own_chat_template(model.chat_template)
    if arguments := model.chat_template_args:
        tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, **arguments)
    return tokenizer


def _own_chat_template(file: str) -> str:
    try:
        return expanded(resolve(file)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ModuleNotFoundError) as error:
        raise UserError([Fault("model.chat_template", f"cannot be read: {error}")]) from error


def save_own_tokenizer(model: ModelConfig, tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer beside an adapter if it is not the base's."""
    if model.has_own_tokenizer:
        tokenizer.save_pretrained(folder)


def saved_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder of weights; None if there is none, or it needs code of its own.

    Code of such a folder is never run, whatever the model may: somebody else may have sent it.

    Raises:
        OSError, ValueError: it is damaged.
    """
    if not (folder / "tokenizer_config.json").exists():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            return None
        raise


def load_model(
    model: ModelConfig, *, is_hollow: bool = False, architecture: Any = AutoModelForCausalLM
) -> Any:
    """A fresh copy of the base model in its dtype, on the CPU; in 4 bits, on this process's device.

    A hollow one is the same without values, on PyTorch's meta device. The architecture is that
    which the model's configuration names, or the class that is given.

    A mixture of experts computes no load-balancing loss of its routers, though its configuration
    may ask for it: that is no part of the cross-entropy, and depends on the whole batch.

    Raises:
        UserError: as for its tokenizer, or it does not take `model.attention`, or lacks weights, or
            its files are quantised in a way that is not trained, or other than the sweep file says.
    """
    options = {"dtype": getattr(torch, model.dtype), "attn_implementation": model.attention}
    options["use_kernels"] = False  # Transformers would download compiled code from the hub
    config = config_json(model, may_fetch=True)
    if faults := quantisation_faults(model, config):  # at once, as weights may take minutes
        raise UserError(faults)
    if model.load_in_4bit and quantisation_method(config) is None:
        options["quantization_config"] = quantisation(options["dtype"])
    if model.load_in_4bit:
        # By its number, as Accelerate trains no 4 bits on a GPU other than where they are.
        place = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        options["device_map"] = {"": place}  # quantising on a CPU is slow
    elif is_hollow:
        options["device_map"] = {"": "meta"}
    loaded, report = _load(architecture, model, **options, output_loading_info=True)
    if has_adapter(loaded):
        raise UserError([adapter_fault(model.name)])
    if model.load_in_4bit:
        compute_in(loaded, options["dtype"])
    _check_is_whole(model, loaded, report["missing_keys"])
    keep_trainable(loaded)
    with suppress(NotImplementedError):  # a model's own code may not say which they are
        loaded.get_input_embeddings().register_forward_pre_hook(lambda *_: watchdog.reset())
    text = loaded.config.get_text_config()
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = False
    if model.eos_token is not None:  # as TRL does, which slots go without
        end = load_tokenizer(model).eos_token_id
        text.eos_token_id = end
        others = [token for token in ends(loaded) if token != end]
        loaded.generation_config.eos_token_id = [end, *others]
    _make_savable(loaded.generation_config)
    return loaded


def _check_is_whole(model: ModelConfig, loaded: Any, missing: Set[str]) -> None:
    """Refuse weights that Transformers has drawn at random, others whenever the model is loaded."""
    drawn = sorted(missing & {name for name, _ in loaded.named_parameters()})
    if drawn:
        rule = f"cannot load {model.name}: its files lack {drawn[0]}"
        rule += f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
        raise UserError([Fault("model.name", rule, FETCH_AGAIN)])


def _make_savable(generation: Any) -> None:
    """Correct the settings for which Transformers would refuse to save a changed configuration.

    It is changed here, in the tokens at which generation ends, and by TRL in the padding token.
    Settings without effect are dropped, such as a temperature where it does not sample, or one of
    beams without beams; so is a padding token below 0. One with a temperature or the like that does
    not say whether it samples is made to say so.
    """
    stated = generation.do_sample
    generation.do_sample = stated is not False
    for name in _at_fault(generation):
        setattr(generation, name, None)
    generation.do_sample = stated
    if _at_fault(generation):  # they are of sampling, and nothing is stated
        generation.do_sample = True


def _at_fault(generation: Any) -> list[str]:
    """The settings for which Transformers would not save them."""
    try:
        generation.validate(strict=True)
    except ValueError as error:
        return _SETTING_AT_FAULT(str(error))
    return []


def ends(loaded: Any) -> list[int]:
    """The tokens at which a model's generation stops."""
    stated = loaded.generation_config.eos_token_id
    return list(stated) if isinstance(stated, (list, tuple)) else [stated] * (stated is not None)


def hollow_model(model: ModelConfig) -> Any:
    """The base model without its weights, for the names and shapes that they have in memory.

    Raises:
        UserError: it cannot be loaded.
    """
    config = _load(AutoConfig, model)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)


@lru_cache(maxsize=1)
def shared_base(model: ModelConfig) -> Any:
    """The base model on this process's device, loaded once per process.

    Callers that put adapters into it remove them again.
    """
    return load_model(model).to(device())


def local_folder(model: ModelConfig) -> Path:
    """The folder of the model's safetensors and configuration, fetched from the hub if needed.

    Raises:
        UserError: it cannot be found.
    """
    try:
        location = source(model)
        if is_local(location):
            return Path(location)
        # Some have all weights twice: in other folders, or as one file in Mistral's own format.
        fetched = snapshot_download(
            location,
            revision=model.revision,
            allow_patterns=["*.safetensors", "*.json"],
            ignore_patterns=["*/*", "consolidated*.safetensors"],
        )
        return Path(fetched)
    except (OSError, HTTPError, ModuleNotFoundError) as error:
        rule = f"cannot find {model.name}: {error}"
        raise UserError([Fault("model.name", rule, hub_remedy(error))]) from error


def pinned(model: ModelConfig) -> ModelConfig:
    """A hub model at the commit that its branch or tag points to now; any other unchanged.

    A model that cannot be found is also left unchanged: loading it will report that.
    """
    with suppress(OSError, ModuleNotFoundError, ValueError):
        if not is_local(origin := source(model)):
            return model.model_copy(update={"revision": _commit(origin, model.revision)})
    return model


def _commit(origin: str, revision: str | None) -> str:
    """The commit of a hub model.

    Raises:
        OSError: the hub does not give it, or is not reached.
    """
    try:
        file = Path(hf_hub_download(origin, "config.json", revision=revision))
    except HTTPError as error:  # the client's own, some of which are an OSError too
        raise error if isinstance(error, OSError) else OSError(error_text(error)) from error
    return file.parent.name  # the client's cache has a folder for each commit


def fingerprint(model: ModelConfig) -> str:
    """A hash of the model's content: the commit of a hub model, else a hash of its files."""
    origin = source(model)
    if not is_local(origin):
        return f"{model.name}@{_commit(origin, model.revision)}"
    return content_digest(Path(origin))


def changed(model: ModelConfig, inputs: Mapping[str, str]) -> str | None:
    """That the base's files are no longer those of a sweep's first start; None if they are.

    None, too, where there are none, or none were recorded, as of the hub's.

    Args:
        model: the sweep's.
        inputs: its digests by field, as in `SweepRecord`.

    Raises:
        ModuleNotFoundError: the package that carries them is not installed here.
    """
    path, recorded = expanded(resolve(model.name)), inputs.get("model.name")
    if recorded is None or not path.exists() or content_digest(path) == recorded:
        return None
    return f"{model.name} has changed since the sweep's first start"


def _load(auto_class: Any, model: ModelConfig, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(
            source(model),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            **options,
        )
    except (*LOAD_ERRORS, HTTPError) as error:
        fault = loading_fault(model, error, options.get("attn_implementation"))
        if fault is None:
            raise
        raise UserError([fault]) from error


def source(model: ModelConfig) -> str:
    """What Transformers loads it from: a hub name, or a folder on this machine.

    Raises:
        OSError: the file or folder does not exist.
    """
    location = resolve(model.name)
    if not is_local(location):
        return location
    path = expanded(location)
    if reason := absence(path, "file or folder"):
        raise OSError(f"{reason}: {path}")
    return str(_converted(path)) if path.suffix == ".gguf" else str(path)


def _converted(gguf: Path) -> Path:
    """The Hugging Face folder of a GGUF file, created once per node.

    What Transformers reads from a GGUF cannot be saved as it is, so its weights go into a plain
    model of the same architecture, which can be.
    """
    folder = node_cache() / "models" / f"{gguf.stem}-{content_digest(gguf)[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            there = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
            quantised = AutoModelForCausalLM.from_pretrained(
                **there, dtype=torch.float32, use_kernels=False
            )
            config = quantised.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            plain = AutoModelForCausalLM.from_config(config)
            plain.load_state_dict(quantised.state_dict())
            with whole_folder(folder) as unfinished:
                plain.save_pretrained(unfinished)
                AutoTokenizer.from_pretrained(**there).save_pretrained(unfinished)
    return folder
