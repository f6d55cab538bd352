"""The base model's evaluation: once per content, with warnings where it cannot serve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from evaluated import NO_REQUIREMENTS, evaluated_base
from faults import faults
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from trainables.config import BaseRequirements, ModelConfig
from trainables.data.tokenized import DATA_FOLDER, read_data
from trainables.errors import UserError
from trainables.evaluation import base_inputs
from trainables.evaluation.base_scores import Base
from trainables.evaluation.evaluator import Evaluator
from trainables.evaluation.model_limits import count_positions
from trainables.methods.lora import Lora
from trainables.models.loading import shared_base
from trainables.workers.ray_tasks import evaluate_base_on_worker
from tune.cluster.node_checks import marker_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_trials import Run

    from trainables.config import TrialConfig
    from tune.config.sweep_config import SweepConfig

MODEL = Path(__file__).parents[3] / "trainables" / "embedded" / "model"
FEW = ("eval.retention=[list_last]", "eval.ood=[]", "eval.limit=12", "eval.general_text=null")
OBJECTIVE = "objectives=[{metric: in_domain/acc_mean, mode: max}]"
WITHOUT_DOMAIN = (
    "eval.in_domain=[]",
    "eval.ood=[list_max]",  # there is no gap to it
    "objectives=[{metric: validation/loss, mode: min}]",
)


@pytest.fixture
def evaluate(load: Callable[..., SweepConfig], tmp_path: Path) -> Callable[..., Path]:
    return lambda *overrides: evaluated_base(load(*FEW, OBJECTIVE, *overrides), tmp_path)


def evaluated_on_worker(config: SweepConfig, cache: Path, target: Path) -> UserError | None:
    parts = config.model, config.data, config.eval, config.seed
    with marker_in(target) as marker:
        return evaluate_base_on_worker(*parts, str(cache), str(target), marker, NO_REQUIREMENTS)


def test_same_content_is_evaluated_once(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    """Also of tasks in another folder, as a cluster has the code in another one at each start."""
    first = evaluate()
    written = (first / "base.json").stat().st_mtime_ns
    copied = shutil.copytree(MODEL.parent / "eval_tasks", tmp_path / "tasks")
    assert evaluate("train.steps=99", "name=other", f"eval.task_dirs=[{copied}]") == first
    assert (first / "base.json").stat().st_mtime_ns == written


def test_other_content_is_evaluated_anew(evaluate: Callable[..., Path]) -> None:
    """`scores_key` follows what the scores depend on: neither seed, data nor batch size."""
    same_scores = ("seed=1", "data.limit=9", "eval.batch_size=3", "eval.kl_tokens=3")
    first = Base.load(evaluate()).record
    records = [Base.load(evaluate(change)).record for change in same_scores]
    fewer = Base.load(evaluate("eval.limit=11")).record
    assert len({record.key for record in (first, *records, fewer)}) == 6
    assert {record.scores_key for record in records} == {first.scores_key}
    assert fewer.scores_key != first.scores_key


def test_all_that_is_wrong_with_model_data_and_tasks_is_reported_at_once(
    load: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    asked = (("q_proj",), ("q_proj", "v_porj"), "all-linear")
    adapters = tuple(("wide", Lora(rank=1, alpha=1, target_modules=each)) for each in asked)
    chats = ("data.chat_template=true", "eval.chat_template=true", "eval.in_domain=[nowhere]")
    config = load(*FEW, OBJECTIVE, *chats)
    found = faults(evaluated_base, config, tmp_path, BaseRequirements(adapters=adapters))
    by_field = {fault.field: fault for fault in found}
    adapter = by_field["search.wide.target_modules"]
    assert adapter.rule == "the model has no v_porj"
    assert "q_proj, k_proj, v_proj" in adapter.remedy
    assert "no chat template" in by_field["data.chat_template"].rule
    assert {"eval.chat_template", "eval.in_domain"} < by_field.keys()
    assert not any("lora" in name for name, _ in shared_base(config.model).named_modules())
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "model.safetensors").write_text("half of a download")
    task, load_error = faults(
        evaluated_base, load(*FEW, OBJECTIVE, "eval.ood=[acc]", f"model.name={model}"), tmp_path
    )[::-1]
    assert f"cannot load {model}: Error while deserializing" in load_error.rule
    assert "no task named acc in " in task.rule


def test_without_in_domain_tasks_the_base_has_the_loss_of_an_untrained_trial(
    evaluate: Callable[..., Path],
    load: Callable[..., SweepConfig],
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
) -> None:
    folder = evaluate(*WITHOUT_DOMAIN)
    record, suite = Base.load(folder).record, load(*FEW, *WITHOUT_DOMAIN).eval
    assert "ood/acc_mean" in record.metrics
    assert not {"in_domain/acc_mean", "ood/gap"} & set(record.metrics)
    trial = make_trial(base_dir=str(folder), learning_rate=1e-12)
    loss = run(trial.model_copy(update={"eval": suite})).last["validation/loss"]
    assert record.metrics["validation/loss"] == pytest.approx(loss, rel=1e-4)
    rows = ("data.validation_path=null", "data.validation_fraction=1e-9")
    (fault,) = faults(evaluate, *WITHOUT_DOMAIN, *rows)
    assert fault.field == "data.validation_fraction"
    assert fault.rule == "must give a row of at most 32 tokens, as eval.in_domain is empty"


def test_a_token_that_the_model_has_no_embedding_of_is_named(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "model")
    model = f"model.name={tmp_path / 'model'}"
    assert evaluate(model).exists()  # nothing uses it yet
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "max 4 7 =", "completion": " <new>"}) + "\n")
    with pytest.raises(UserError, match=rf"token {len(tokenizer) - 1} \(<new>\) is used"):
        evaluate(model, f"data.path={rows}", "data.validation_path=null")


def test_a_model_with_a_table_of_positions_is_asked_within_it(
    sweep_config: SweepConfig, tokenizer: Any, base_model: Any, tmp_path: Path
) -> None:
    positions, texts = 22, ("max 4 7 2 = 7 sort 9 1 = 1 9 " * 5, "last 3 =")
    set_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": positions}
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), **shape, **special)
    network = AutoModelForCausalLM.from_config(config).eval()
    assert (count_positions(network), count_positions(base_model)) == (positions, None)
    for part in (network, tokenizer):
        part.save_pretrained(tmp_path / "model")
    file, rows = tmp_path / "texts.jsonl", tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prompts = [f"sort {' '.join(map(str, range(count)))} =" for count in (18, 6, 12)]
    rows.write_text(
        "".join(json.dumps({"prompt": p, "completion": "1"}) + "\n" for p in prompts * 4)
    )
    changes = {"general_text": str(file), "kl_prompts": 8, "kl_tokens": positions // 2}
    own = {"path": str(rows), "prompt": "{{ prompt }}", "validation_path": None}
    parts = {
        "model": ModelConfig(name=str(tmp_path / "model"), dtype="float32"),
        "data": sweep_config.data.model_copy(update=own),
        "eval": sweep_config.eval.model_copy(update=changes),
    }
    base = Base.load(evaluated_base(sweep_config, tmp_path / "cache", **parts))
    assert base.kl_reference is not None
    assert base.kl_reference.input_ids_NS.shape[1] <= positions
    begins = base.kl_reference.scored_NS.int().argmax(dim=1)  # where the first token was sampled
    assert begins.max() == positions - positions // 2 - 1  # after the end of a long prompt
    ids = [tokenizer(text)["input_ids"][:positions] for text in texts]
    with torch.no_grad():
        sums = [
            float(network(torch.tensor([row]), labels=torch.tensor([row])).loss) * (len(row) - 1)
            for row in ids
        ]
    assert base.record.general_nll == pytest.approx(sum(sums) / sum(len(row) - 1 for row in ids))
    longer = {"prompt": f"sort {' '.join(map(str, range(19)))} =", "completion": "1"}
    with rows.open("a") as stream:
        stream.write(json.dumps(longer) + "\n")
    (fault,) = faults(evaluated_base, sweep_config, tmp_path / "cache", **parts)
    assert fault.field == "data.max_length"
    assert f"reads {positions} tokens at most, and a sample has {positions + 1}" in fault.rule


@pytest.mark.parametrize("named", ["data.path={}", "data.replay={{path: {}, share: 0.1}}"])
def test_items_that_are_trained_on_draw_a_warning(
    evaluate: Callable[..., Path], named: str, tmp_path: Path
) -> None:
    items = (MODEL.parent / "eval_tasks" / "items" / "target_relay.jsonl").read_text().splitlines()
    rows = [{"prompt": json.loads(item)["question"], "completion": " 7"} for item in items[10:15]]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    warnings = Base.load(evaluate(named.format(tmp_path / "rows.jsonl"))).record.warnings
    start = "2 of 12 items of target_relay ask word for word what is trained on"
    assert any(text.startswith(start) for text in warnings)


@pytest.fixture
def replay(tmp_path: Path) -> Callable[..., str]:
    """An override that mixes in rows with these answers."""

    def replay(*answers: str, share: float = 0.5) -> str:
        file = tmp_path / "general.jsonl"
        rows = [json.dumps({"prompt": "max 4 7 =", "completion": answer}) for answer in answers]
        file.write_text("\n".join(rows))
        return f"data.replay={{path: {file}, share: {share}}}"

    return replay


@pytest.mark.usefixtures("cluster")
def test_where_memory_runs_out_the_batch_is_halved(
    load: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored can be read by other users of a shared folder, and by the next attempt."""
    tried = []

    def run(self: Any, loaded: Any, lm: Any) -> Any:
        tried.append(lm.batch_size)
        if lm.batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, loaded, lm)

    whole = Evaluator._run
    monkeypatch.setattr(Evaluator, "_run", run)
    cache, target = tmp_path / "cache", tmp_path / "base"
    assert evaluated_on_worker(load(*FEW, OBJECTIVE), cache, target) is None
    assert tried[:3] == [16, 8, 4]
    base = Base.load(target)
    assert base.record.scores.keys() == {"target_relay", "list_last"}
    assert base.kl_reference is not None
    assert read_data(target / DATA_FOLDER).validation
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    usual = {(tmp_path / name).stat().st_mode for name in ("file", "folder")}
    made = [path for root in (cache, target) for path in root.rglob("*")]
    assert {path.stat().st_mode for path in made} == usual
    # Nothing stays of an evaluation that no trial has seen: its held-out rows are trained on now.
    rows = ("eval.kl_prompts=0", "data.validation_path=null", "data.validation_fraction=0")
    assert evaluated_on_worker(load(*FEW, OBJECTIVE, *rows), cache, target) is None
    assert not read_data(target / DATA_FOLDER).validation
    assert Base.load(target).kl_reference is None


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("where", "error", "field", "fact"),
    [
        ("run", torch.OutOfMemoryError("CUDA out of memory"), "eval.batch_size", "one sample at a"),
        ("run", KeyError("answer"), "the base's evaluation", "task target_relay: KeyError: 'ans"),
        ("load", torch.OutOfMemoryError("CUDA: tried 448 MiB"), "model.name", "tried 448 MiB"),
    ],
)
def test_what_fails_on_the_worker_is_reported_in_a_line(
    where: str,
    error: Exception,
    field: str,
    fact: str,
    load: Callable[..., SweepConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def fail(*arguments: Any) -> Any:
        tried.append(arguments)
        raise error

    place = (Evaluator, "_run") if where == "run" else (base_inputs, "shared_base")
    monkeypatch.setattr(*place, fail)
    found = evaluated_on_worker(load(*FEW, OBJECTIVE), tmp_path / "cache", tmp_path / "base")
    assert found is not None
    (fault,) = found.faults
    assert fault.field == field
    assert fact in fault.rule
    if where == "load":
        assert len(tried) == 1  # no smaller batch would change it
    else:
        assert str(error).split()[-1] in (tmp_path / "cache" / "base.log").read_text()
