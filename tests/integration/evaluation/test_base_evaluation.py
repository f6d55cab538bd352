"""The base model's evaluation: once per content, with warnings where it cannot serve."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from evaluated import NO_REQUIREMENTS, evaluated_base
from faults import faults
from transformers import AutoTokenizer

from trainables.config import BaseRequirements, LoraConfig
from trainables.data.tokenized import DATA_FOLDER, read_data
from trainables.errors import UserError
from trainables.evaluation import base_inputs
from trainables.evaluation.base_scores import Base
from trainables.evaluation.evaluator import Evaluator
from trainables.models.loading import shared_base
from trainables.process import out_of_memory
from trainables.records.schema import BASE_RECORD
from trainables.workers.ray_tasks import evaluate_base_on_worker
from tune.cluster.node_checks import marker_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.config import TrialConfig
    from tune.config.sweep_config import SweepConfig

MODEL = Path(__file__).parents[3] / "trainables" / "embedded" / "model"
FEW = ("eval.retention=[list_last]", "eval.ood=[]", "eval.limit=12", "eval.general_text=null")
OBJECTIVE = "objectives=[{metric: in_domain/acc_mean, mode: max}]"


def evaluated_on_worker(config: SweepConfig, cache: Path, target: Path) -> UserError | None:
    with marker_in(target) as marker:
        return evaluate_base_on_worker(
            config.model,
            config.data,
            config.eval,
            config.seed,
            str(cache),
            str(target),
            marker,
            NO_REQUIREMENTS,
        )


@pytest.mark.usefixtures("cluster")
def test_an_evaluation_that_another_has_replaced_leaves_the_sweep_as_it_is(
    load: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that was cut off and lives on: the trials may have begun."""
    target = tmp_path / "sweep" / "base"

    def evaluate_late(evaluate: Callable[[Any], Path], suite: Any) -> Path:
        for marker in target.glob(".seen_by_nodes*"):
            marker.unlink()
        (target / BASE_RECORD).write_text("of the other")
        return tmp_path / "cache"

    monkeypatch.setattr(out_of_memory, "evaluated_within_memory", evaluate_late)
    (tmp_path / "cache").mkdir()
    fault = evaluated_on_worker(load(*FEW, OBJECTIVE), tmp_path / "cache", target)
    assert "what the driver wrote there is not there" in str(fault)
    assert (target / BASE_RECORD).read_text() == "of the other"


@pytest.fixture
def evaluate(load: Callable[..., SweepConfig], tmp_path: Path) -> Callable[..., Path]:
    def evaluate(*overrides: str) -> Path:
        config = load(*FEW, OBJECTIVE, *overrides)
        return evaluated_base(config, tmp_path)

    return evaluate


def test_same_content_is_evaluated_once(evaluate: Callable[..., Path]) -> None:
    first = evaluate()
    written = (first / "base.json").stat().st_mtime_ns
    assert evaluate("train.steps=99", "name=other") == first
    assert (first / "base.json").stat().st_mtime_ns == written


def test_tasks_in_another_folder_are_the_same(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    """A cluster has the code, and so the bundled tasks, in another one each time it starts."""
    copied = shutil.copytree(MODEL.parent / "eval_tasks", tmp_path / "tasks")
    assert evaluate(f"eval.task_dirs=[{copied}]") == evaluate()


@pytest.mark.parametrize(
    "change",
    [
        "eval.limit=11",
        "eval.retention=[list_max]",
        "eval.retention=[{task: list_last, metric: acc, filter: none}]",
        "data.max_length=9",
        "eval.kl_tokens=3",
        "seed=1",  # of what is sampled for KL
    ],
)
def test_other_content_is_evaluated_anew(evaluate: Callable[..., Path], change: str) -> None:
    assert evaluate(change) != evaluate()


def test_without_kl_sweeps_of_all_seeds_share_an_evaluation(
    evaluate: Callable[..., Path],
) -> None:
    constant = ("eval.kl_prompts=0", "data.validation_fraction=0")
    assert evaluate(*constant, "seed=1") == evaluate(*constant)


def test_the_key_of_the_scores_follows_neither_seed_nor_data_nor_batch_size(
    evaluate: Callable[..., Path],
) -> None:
    """Which rows are held out does, and so what KL is sampled from."""
    changes = ("seed=0", "seed=1", "data.limit=9", "eval.batch_size=3", "eval.limit=11")
    one, *others, fewer = (Base.load(evaluate(change)).record for change in changes)
    assert len({one.key, *(other.key for other in others)}) == 4
    assert {other.scores_key for other in others} == {one.scores_key}
    assert fewer.scores_key != one.scores_key


def test_a_chat_template_that_the_model_lacks_is_named(evaluate: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as caught:
        evaluate("data.chat_template=true", "eval.chat_template=true", "eval.in_domain=[nowhere]")
    fields = {fault.field for fault in caught.value.faults}
    assert fields == {"data.chat_template", "eval.chat_template", "eval.in_domain"}


def test_a_chat_template_that_replayed_chats_lack_is_named(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    chat = [{"role": role, "content": "3"} for role in ("user", "assistant")]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"turns": chat}))
    (fault,) = faults(
        evaluate, f"data.replay={{path: {tmp_path / 'chats.jsonl'}, share: 0.5, messages: turns}}"
    )
    assert fault.field == "data.replay"
    assert fault.rule.endswith("has no chat template")


WITHOUT_DOMAIN = (
    "eval.in_domain=[]",
    "eval.ood=[list_max]",  # there is no gap to it
    "objectives=[{metric: validation/loss, mode: min}]",
)


def test_without_in_domain_tasks_the_base_has_the_loss_that_an_untrained_trial_has(
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
    assert evaluate(*WITHOUT_DOMAIN) == folder
    rows = ("data.validation_path=null", "data.validation_fraction=0.1", "eval.kl_prompts=0")
    assert evaluate(*WITHOUT_DOMAIN, *rows, "seed=1") != evaluate(*WITHOUT_DOMAIN, *rows)
    assert "validation/loss" not in Base.load(evaluate()).record.metrics  # accuracy tells more


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        (
            ("data.validation_path=null", "data.validation_fraction=1e-9"),
            "data.validation_fraction",
        ),
        (("data.validation_path={long}",), "data.validation_path"),
    ],
)
def test_where_nothing_tells_what_is_learned_no_base_is_evaluated(
    evaluate: Callable[..., Path], tmp_path: Path, rows: tuple[str, ...], field: str
) -> None:
    long = tmp_path / "long.jsonl"
    row = {"prompt": "relay " + "8 5 " * 40 + "=", "completion": " 3"}
    long.write_text(json.dumps(row) + "\n")
    (fault,) = faults(evaluate, *WITHOUT_DOMAIN, *(value.format(long=long) for value in rows))
    assert fault.field == field
    assert fault.rule == "must give a row of at most 32 tokens, as eval.in_domain is empty"
    evaluate(*(value.format(long=long) for value in rows))


@pytest.fixture
def tokenizer_of_one_more(tmp_path: Path) -> Any:
    """Saved with a model that has no embedding of its last token, <new>."""
    shutil.copytree(MODEL, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "model")
    return tokenizer


def test_a_token_that_the_model_has_no_embedding_of_is_named(
    evaluate: Callable[..., Path], tmp_path: Path, tokenizer_of_one_more: Any
) -> None:
    model, tokenizer = f"model.name={tmp_path / 'model'}", tokenizer_of_one_more
    assert evaluate(model).exists()  # nothing uses it yet
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "max 4 7 =", "completion": " <new>"}) + "\n")
    with pytest.raises(UserError, match=rf"token {len(tokenizer) - 1} \(<new>\) is used"):
        evaluate(model, f"data.path={rows}", "data.validation_path=null")
    tokenizer.pad_token = "<new>"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"\(<new>\) is used"):
        evaluate(model)


@pytest.mark.parametrize("where", ["general text", "choices", "generation"])
def test_a_token_without_embedding_is_named_where_the_evaluation_alone_uses_it(
    where: str, load: Callable[..., SweepConfig], tmp_path: Path, tokenizer_of_one_more: Any
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "max 4 <new> 7"}) + "\n")
    task = {
        "task": "fresh",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "doc_to_text": "text",
    }
    kinds = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_choice": ["4", "7"],
            "doc_to_target": 0,
            "metric_list": [{"metric": "acc"}],
        },
        "generation": {
            "output_type": "generate_until",
            "doc_to_target": "4",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    used = f"eval.general_text={rows}"
    if where in kinds:
        (tmp_path / "fresh.yaml").write_text(json.dumps(task | kinds[where]))
        used = f"eval={{task_dirs: [{tmp_path}], in_domain: [fresh], kl_prompts: 0}}"
    config = load(*FEW, OBJECTIVE, f"model.name={tmp_path / 'model'}", used)
    with pytest.raises(UserError, match=r"\(<new>\) is used"):
        evaluated_base(config, tmp_path / "cache")
    base = shared_base(config.model)
    with pytest.raises(IndexError):  # nothing looks at what trials take
        base(torch.tensor([[len(tokenizer_of_one_more) - 1]]))


@pytest.mark.usefixtures("cluster")
def test_where_memory_runs_out_the_batch_is_halved(
    load: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(*FEW, OBJECTIVE)
    tried = []

    def run(self: Any, loaded: Any, lm: Any) -> Any:
        tried.append(lm.batch_size)
        if lm.batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, loaded, lm)

    whole = Evaluator._run
    monkeypatch.setattr(Evaluator, "_run", run)
    assert evaluated_on_worker(config, tmp_path / "cache", tmp_path / "base") is None
    assert tried[:3] == [16, 8, 4]
    assert Base.load(tmp_path / "base").record.scores.keys() == {"target_relay", "list_last"}


@pytest.mark.usefixtures("cluster")
def test_nothing_stays_of_an_evaluation_that_no_trial_has_seen(
    load: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    """As where a start got no further: rows held out by it are trained on by this one."""
    target = tmp_path / "base"
    for overrides in (
        (),
        ("eval.kl_prompts=0", "data.validation_path=null", "data.validation_fraction=0"),
    ):
        config = load(*FEW, OBJECTIVE, *overrides)
        assert evaluated_on_worker(config, tmp_path / "cache", target) is None
        stored = read_data(target / DATA_FOLDER)
        is_measured = Base.load(target).kl_reference is not None
        assert bool(stored.validation) is is_measured is (not overrides)
        assert len(stored.prompts) == config.eval.kl_prompts


@pytest.mark.usefixtures("cluster")
def test_other_users_of_a_shared_folder_can_read_what_is_evaluated_once_for_all(
    load: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    config, cache, target = load(*FEW, OBJECTIVE), tmp_path / "cache", tmp_path / "base"
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    usual = {(tmp_path / name).stat().st_mode for name in ("file", "folder")}
    assert evaluated_on_worker(config, cache, target) is None
    made = [path for root in (cache, target) for path in root.rglob("*")]
    assert {path.name for path in made if path.suffix == ".safetensors"}
    assert {path.stat().st_mode for path in made} == usual


@pytest.mark.usefixtures("cluster")
def test_a_model_that_does_not_fit_is_tried_once_and_told_of(
    load: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(*FEW, OBJECTIVE)
    tried = []

    def shared_base(model: Any) -> Any:
        tried.append(model)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 448.00 MiB")

    monkeypatch.setattr(base_inputs, "shared_base", shared_base)
    told = evaluated_on_worker(config, tmp_path / "cache", tmp_path / "base")
    assert told is not None
    (fault,) = told.faults
    assert fault.field == "model.name"
    assert config.model.name in fault.rule
    assert "Tried to allocate 448.00 MiB" in fault.rule
    assert len(tried) == 1


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("error", "field", "word"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "eval.batch_size", "one sample at a time"),
        (KeyError("answer"), "the base's evaluation", "task target_relay: KeyError: 'answer'"),
    ],
)
def test_what_fails_is_told_in_a_line(
    error: Exception,
    field: str,
    word: str,
    load: Callable[..., SweepConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load(*FEW, OBJECTIVE)

    def run(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(Evaluator, "_run", run)
    told = evaluated_on_worker(config, tmp_path / "cache", tmp_path / "base")
    assert told is not None
    (fault,) = told.faults
    assert fault.field == field
    assert word in fault.rule
    assert str(error).split()[-1] in (tmp_path / "cache" / "base.log").read_text()


def test_adapters_that_the_base_does_not_take_are_told_of_with_all_else(
    load: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    config = load(*FEW, OBJECTIVE, "eval.ood=[no_such_task]")
    asked = (("q_proj",), ("q_proj", "v_porj"), ("nothing_like_this",), "all-linear")
    adapters = tuple(LoraConfig(rank=1, alpha=1, target_modules=modules) for modules in asked)
    requirements = BaseRequirements(adapters=adapters)
    with pytest.raises(UserError) as caught:
        evaluated_base(config, tmp_path, requirements)
    of_adapters = [f for f in caught.value.faults if f.field.startswith("search.lora")]
    misspelt, absent = of_adapters
    assert misspelt.rule == "the model has no v_porj"
    assert "nothing_like_this" in absent.rule
    assert all("q_proj, k_proj, v_proj" in fault.remedy for fault in of_adapters)
    assert any("no_such_task" in fault.rule for fault in caught.value.faults)
    base = shared_base(config.model)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_a_model_that_cannot_be_loaded_is_told_of_with_all_else(
    load: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "model.safetensors").write_text("half of a download")
    # A word of the harness's, which the driver lets pass.
    config = load(*FEW, OBJECTIVE, "eval.retention=[acc]", f"model.name={model}")
    with pytest.raises(UserError) as caught:
        evaluated_base(config, tmp_path / "cache")
    told = str(caught.value)
    assert "eval.retention: no task named acc in " in told
    assert f"model.name: cannot load {model}: Error while deserializing" in told


def test_retention_task_at_chance_draws_a_warning(evaluate: Callable[..., Path]) -> None:
    record = Base.load(
        evaluate("eval.in_domain=[list_last]", "eval.retention=[target_relay]")
    ).record
    (warning,) = record.warnings
    assert "retention task target_relay" in warning
    assert "at chance (0.250)" in warning


@pytest.mark.parametrize("named", ["data.path={}", "data.replay={{path: {}, share: 0.1}}"])
def test_items_that_are_trained_on_draw_a_warning_and_another_key(
    evaluate: Callable[..., Path], named: str, tmp_path: Path
) -> None:
    items = (MODEL.parent / "eval_tasks" / "items" / "target_relay.jsonl").read_text().splitlines()
    rows = [{"prompt": json.loads(item)["question"], "completion": " 7"} for item in items[10:15]]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = evaluate(named.format(tmp_path / "rows.jsonl"))
    told = "2 of 12 items of target_relay ask word for word what is trained on"
    assert any(text.startswith(told) for text in Base.load(found).record.warnings)
    assert found != evaluate()


@pytest.fixture
def replay(tmp_path: Path) -> Callable[..., str]:
    """An override that mixes in rows with these answers."""

    def replay(*answers: str, share: float = 0.5) -> str:
        file = tmp_path / "general.jsonl"
        rows = [json.dumps({"prompt": "max 4 7 =", "completion": answer}) for answer in answers]
        file.write_text("\n".join(rows))
        return f"data.replay={{path: {file}, share: {share}}}"

    return replay


def test_samples_longer_than_max_length_are_counted(
    evaluate: Callable[..., Path], replay: Callable[..., str]
) -> None:
    everything = Base.load(evaluate()).record
    record = Base.load(evaluate("data.max_length=8")).record
    assert record.skipped_samples > 0
    assert record.train_samples + record.skipped_samples == everything.train_samples
    told = f"{record.skipped_samples} of {everything.train_samples} training samples"
    assert told in record.warnings[0]
    assert told in Base.load(evaluate("data.max_length=8", replay(" 7"))).record.warnings[0]


def test_held_out_samples_longer_than_max_length_are_counted(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "held_out.jsonl"
    rows = [{"prompt": "max 4 7 =", "completion": " 7" * times} for times in (1, 40, 1, 40, 40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate("data.limit=9", "data.max_length=30", f"data.validation_path={file}")
    record = Base.load(found).record
    assert (record.validation_samples, record.skipped_validation_samples) == (2, 3)
    told = "3 of 5 held-out samples are longer than data.max_length = 30 tokens and were left out"
    assert record.warnings[0] == told


def test_replayed_samples_that_are_left_out_or_repeated_are_told(
    evaluate: Callable[..., Path], replay: Callable[..., str]
) -> None:
    general = replay(" 7", " 7", *[" 7" * 40] * 3)
    record = Base.load(evaluate("data.limit=9", "data.max_length=30", general)).record
    assert record.warnings[:2] == (
        "3 of 5 samples drawn from data.replay are longer than data.max_length = 30 tokens and "
        "were left out",
        "data.replay has 2 samples for the 9 of its share: each is trained on 4.5 times an epoch",
    )


def test_replayed_answers_that_are_far_longer_or_shorter_than_the_others_are_told_of(
    evaluate: Callable[..., Path], replay: Callable[..., str]
) -> None:
    def told(*overrides: str) -> tuple[float, list[str]]:
        record = Base.load(evaluate("data.limit=90", *overrides)).record
        found = [re.search(r"data.replay.share=(\S+) would", text) for text in record.warnings]
        return record.replayed_tokens, [match[1] for match in found if match]

    long = " 7" * 20
    tokens, (share,) = told(replay(long))
    assert tokens > 0.8
    corrected, (_,) = told(replay(long, share=float(share)))
    assert corrected == pytest.approx(0.5, abs=0.03)
    tokens, (share,) = told(replay(" 7"), 'data.completion="{{ prompt }}"')
    assert tokens < 0.3
    assert told(replay(" 7"))[1] == []
