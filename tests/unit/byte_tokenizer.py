"""A tokenizer whose chat template can be any."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Importing TRL would take seconds.
TEMPLATES = Path(str(getattr(find_spec("trl"), "origin", None))).parent / "chat_templates"
END = "<|im_end|>"


def of_bytes(template: str) -> Any:
    """A tokenizer with one token a byte, with a chat template of TRL's or one that is given."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token=END)
    file = TEMPLATES / f"{template}.jinja"
    tokenizer.chat_template = template if "{" in template else file.read_text(encoding="utf-8")
    return tokenizer
