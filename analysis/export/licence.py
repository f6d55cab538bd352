"""The licence of a base model, as far as it is known on this machine."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from pathlib import Path

import yaml

from trainables.config import ModelConfig
from trainables.models.model_shape import in_hub_cache
from trainables.storage.locations import PACKAGE_SCHEME, expanded, is_local, resolve

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.\-]*")


def licence_of(model: ModelConfig) -> str | None:
    """The licence's identifier in the hub's spelling, such as `apache-2.0`; None if unknown.

    It is read from the model's own card, next to a local model or in the hub's cache, or from the
    metadata of the Python package that ships it. Nothing is downloaded.
    """
    card = _card(model)
    found = _in_card(card) if card else None
    if found is None and model.name.startswith(PACKAGE_SCHEME):
        found = _of_package(model.name.removeprefix(PACKAGE_SCHEME).split("/")[0])
    return found if found and _IDENTIFIER.fullmatch(found) else None


def _card(model: ModelConfig) -> Path | None:
    if is_local(model.name):
        path = expanded(resolve(model.name))
        card = (path if path.is_dir() else path.parent) / "README.md"
        return card if card.is_file() else None
    return in_hub_cache(model.name, "README.md", model.revision)


def _in_card(card: Path) -> str | None:
    from huggingface_hub.repocard import metadata_load

    try:
        licence = (metadata_load(card) or {}).get("license")
    except (yaml.YAMLError, ValueError):  # no YAML, none of fields, or no UTF-8
        return None
    return licence.lower() if isinstance(licence, str) else None


def _of_package(package: str) -> str | None:
    # An editable install, which this project uses for development, lists none.
    ours = ["forgetting-sweeps"] if package == "trainables" else []
    for distribution in packages_distributions().get(package, ours):
        try:
            fields = metadata(distribution).json
        except PackageNotFoundError:
            continue
        licence = fields.get("license_expression") or fields.get("license")
        if isinstance(licence, str):
            return licence.strip().lower()
    return None
