"""A model with a table of positions is asked of nothing beyond its end, where others read on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from evaluated import evaluated_base
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import ModelConfig
from trainables.errors import UserError
from trainables.evaluation.base_scores import Base
from trainables.evaluation.positions import positions_of

if TYPE_CHECKING:
    from trainables.config import DataConfig
    from tune.config.sweep_config import SweepConfig


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("n_positions", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    "opt": (
        "max_position_embeddings",
        {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"word_embed_proj_dim": 16},
    ),
}
EMBEDDED = Path(__file__).parents[3] / "trainables" / "embedded" / "model"
LONGEST = 22
LONG = "max 4 7 2 = 7 sort 9 1 = 1 9 " * 5


@pytest.fixture(params=KINDS)
def kind(request: Any) -> str:
    return str(request.param)


def network(kind: str, tokenizer: Any, positions: int) -> Any:
    set_seed(0)
    name, shape = KINDS[kind]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), **shape, **special, **{name: positions}
    )
    return AutoModelForCausalLM.from_config(config).eval()


def saved(kind: str, tokenizer: Any, positions: int, folder: Path) -> ModelConfig:
    for part in (network(kind, tokenizer, positions), tokenizer):
        part.save_pretrained(folder / "model")
    return ModelConfig(name=str(folder / "model"), dtype="float32")


@pytest.fixture
def data(sweep_config: SweepConfig, tmp_path: Path) -> DataConfig:
    """Of samples of other lengths, the longest of which have LONGEST tokens."""
    prompts = (f"sort {' '.join(map(str, range(count)))} =" for count in (18, 6, 12))
    rows = [json.dumps({"prompt": prompt, "completion": "1"}) for prompt in prompts]
    (tmp_path / "data.jsonl").write_text("\n".join(rows * 4))
    changes = {
        "path": str(tmp_path / "data.jsonl"),
        "prompt": "{{ prompt }}",
        "validation_path": None,
    }
    return sweep_config.data.model_copy(update=changes)


def test_a_base_is_measured_within_its_positions(
    kind: str, sweep_config: SweepConfig, tokenizer: Any, data: DataConfig, tmp_path: Path
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in (LONG, "last 3 =")))
    model = saved(kind, tokenizer, LONGEST, tmp_path)
    changes = {"general_text": str(file), "kl_prompts": 8, "kl_tokens": LONGEST // 2}
    suite = sweep_config.eval.model_copy(update=changes)
    base = Base.load(
        evaluated_base(sweep_config, tmp_path / "cache", model=model, data=data, eval=suite)
    )
    assert base.kl_reference is not None
    assert base.kl_reference.input_ids_NS.shape[1] <= LONGEST
    begins = base.kl_reference.scored_NS.int().argmax(dim=1)  # where the first token was sampled
    assert begins.max() == LONGEST - LONGEST // 2 - 1  # after what a long prompt ends with
    ids = [tokenizer(text)["input_ids"][:LONGEST] for text in (LONG, "last 3 =")]
    with torch.no_grad():
        passes = [network(kind, tokenizer, LONGEST)(torch.tensor([row])) for row in ids]
    nll = [
        torch.nn.functional.cross_entropy(
            done.logits[0, :-1], torch.tensor(row[1:]), reduction="sum"
        )
        for done, row in zip(passes, ids, strict=True)
    ]
    assert base.record.general_nll == pytest.approx(sum(nll) / sum(len(row) - 1 for row in ids))


def test_data_beyond_its_positions_are_refused_before_a_trial_is_spent(
    kind: str, sweep_config: SweepConfig, tokenizer: Any, data: DataConfig, tmp_path: Path
) -> None:
    model = saved(kind, tokenizer, LONGEST - 1, tmp_path)
    told = f"data.max_length: the model reads {LONGEST - 1} tokens at most, and a sample has"
    with pytest.raises(UserError, match=told):
        evaluated_base(sweep_config, tmp_path / "cache", model=model, data=data)


def test_data_beyond_what_the_model_was_made_for_are_told_of_where_it_reads_on(
    sweep_config: SweepConfig, data: DataConfig, tmp_path: Path
) -> None:
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": LONGEST - 1})
    )
    model = ModelConfig(name=str(folder), dtype="float32")
    suite = sweep_config.eval.model_copy(update={"limit": 4})
    folder = evaluated_base(sweep_config, tmp_path / "cache", model=model, data=data, eval=suite)
    warnings = Base.load(folder).record.warnings
    told = f"4 of 12 samples are longer than the {LONGEST - 1} tokens that the model was made for"
    assert [text for text in warnings if text.startswith(told)]


def test_rotary_positions_have_no_end(base_model: Any) -> None:
    assert positions_of(base_model) is None
