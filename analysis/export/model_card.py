"""The model card of an exported trial: what it is, its scores, why it was chosen, its origin."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import yaml

from analysis.export.markdown import code, escaped, fenced, table
from analysis.export.serving import serving
from analysis.results.formatting import (
    ABSENT,
    REPAIRS,
    alteration,
    goals_in_words,
    metric_text,
    one_line,
    rate,
    setting,
)
from analysis.results.pareto import Goals
from analysis.results.recommendation import Recommendation, numbers_text
from analysis.results.repeats import judged_by_repeats
from analysis.shown_sweeps import Results
from analysis.sweeps import Sweep
from trainables import metric_keys
from trainables.config import DataConfig, ModelConfig, Replay
from trainables.methods import Method
from trainables.models.model_shape import config_json
from trainables.models.quantised_files import quantisation_method
from trainables.named import Named
from trainables.records.schema import BaseRecord, TrialRecord
from trainables.records.sweep_record import SweepRecord
from trainables.storage.locations import is_local

Kind = Literal["adapter", "merged", "model"]
"""An adapter of a base; one merged into its base; a model whose own weights were trained."""

_SUMMARY = (
    metric_keys.OOD_ACC,
    metric_keys.RETENTION_ACC,
    metric_keys.RETENTION_RATIO,
    metric_keys.FORGETTING_MEAN,
    metric_keys.FORGETTING_MAX,
    metric_keys.FORGETTING_NLL,
    metric_keys.KL_BASE_TO_TUNED,
)
_ROLES = {"in_domain": "in domain", "retention": "retention", "ood": "out of domain"}
_WHAT = {
    "adapter": "An adapter of {}",
    "merged": "{} with a trained adapter merged into it",
    "model": "A fine-tuned {}",
}

# In the dtype that the scores were measured in: else the base would be in that of its files.
_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer{imported}
{quantization}
# Loads the base, too.
model = AutoPeftModelForCausalLM.from_pretrained("PATH", dtype="{dtype}"{passed})
"""
_IN_4_BITS = """
config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="{dtype}",
)"""


def model_card(kind: Kind, record: TrialRecord, sweep: Sweep, settings: Mapping[str, Any]) -> str:
    """The card as Markdown, with front matter for the Hugging Face hub.

    `settings` are those of the exported `adapter_config.json` or `config.json`.
    """
    base, config = sweep.base, record.config
    model, method = config.model, config.method
    warnings = sweep.record.origin(record).warnings_with(base)
    adapter = settings if kind == "adapter" else None
    parts = [
        f"---\n{_front_matter(kind, record, base)}\n---",
        f"# {escaped(sweep.name)}, trial {record.number}{alteration(record)}",
        f"{_WHAT[kind].format(code(model.name))}, trained by {escaped(method.title)} with the "
        f"loss {escaped(config.loss.title)} ({escaped(setting(record))}). "
        + escaped(_why(record, sweep.settings, sweep.recommendation))
        + (f" The sweep was not finished then: {sweep.unfinished}." if sweep.unfinished else ""),
        f"## Load\n\n{fenced(_loading(kind, model, record.config.method), 'python')}",
        f"## Serve\n\n{serving(sweep.name, model, method, adapter)}",
        _prompting(record.config.data, model),
        f"## Scores\n\n{_summary(record, base)}",
        *([_tasks(record, base)] if base.scores else []),
        *([_curve(record, sweep, adapter)] if _trained(record, sweep).points else []),
        "Forgetting is the base's accuracy minus this model's: positive means that it forgot. "
        "± is the standard error over items." + _selection_caveat(record, sweep),
        *([_warnings(warnings)] if warnings else []),
        f"## Training\n\n{_training(record, base)}",
        f"## Provenance\n\n{_provenance(record, base, sweep.record)}",
    ]
    return "\n\n".join(parts) + "\n"


def _prompting(data: DataConfig, model: ModelConfig) -> str:
    template = "chat template"
    if model.chat_template_args:
        template += f" with {code(json.dumps(model.chat_template_args))}"
    system = ""
    if data.system is not None:
        system = f" Those without a system's turn began with\n\n{fenced(data.system, 'jinja')}"
    if data.messages is not None:
        learned = "the last answer of each was" if data.answers == "last" else "all answers were"
        return f"Chats were rendered by the {template}; {learned} trained.{system}"
    if data.text is not None:
        return f"Trained on the plain text of the field {code(data.text)}, without prompts."
    return (
        f"Each prompt was rendered as\n\n{fenced(data.prompt, 'jinja')}\n\n"
        f"and answered with\n\n{fenced(data.completion, 'jinja')}"
        + (f"\n\nas turns of the {template}.{system}" if data.chat_template else "")
    )


def _front_matter(kind: Kind, record: TrialRecord, base: BaseRecord) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    config = record.config
    method = re.sub(r"\W+", "-", config.method.title.lower())
    library = [] if config.method.changes_base else ["peft"]
    replay = config.data.replay
    replayed = [replay.path] if replay and replay.share and not replay.control else []
    on_hub = [one_line(path) for path in (config.data.path, *replayed) if not is_local(path)]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=one_line(task),
            dataset_name=f"{one_line(task)} ({_ROLES[score.role]})",
            metric_type=one_line(score.metric),
            metric_name=one_line(key),
            metric_value=value,
        )
        for task, score, key, value in base.scored(record)
    ]
    data = ModelCardData(
        # The hub accepts only names of its own.
        base_model=None if is_local(config.model.name) else one_line(config.model.name),
        datasets=list(dict.fromkeys(on_hub)) or None,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=[method, *library, config.loss.name, "forgetting-sweeps"],
        metrics=sorted({one_line(score.metric) for score in base.scores.values()}),
        model_name=one_line(config.trial_id),
        eval_results=results,
    )
    fields = {name: value for name, value in data.to_dict().items() if value is not None}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=10_000).strip()


def _why(record: TrialRecord, goals: Goals, recommendation: Recommendation | None) -> str:
    searched = f"The sweep searched for {goals_in_words(goals)}"
    repeat = f", a repeat of trial {record.confirms} with seed {record.config.seed},"
    by_hand = f"This trial{'' if record.confirms is None else repeat} was chosen by hand"
    if recommendation is None:
        return f"{searched}. {by_hand}."
    if recommendation.trial.point_id != record.point_id:
        name = numbers_text([recommendation.trial])
        nearest = f"{name} came nearest"
        other = f"the sweep recommends {name}" if recommendation.feasible else nearest
        return f"{searched}. {by_hand}; {other}."
    this = f"this trial{alteration(record)}"
    found = f"recommends {this}" if recommendation.feasible else f"{this} came nearest"
    return f"{searched}, and {found}: {recommendation.reason}"


def _selection_caveat(record: TrialRecord, sweep: Sweep) -> str:
    """A winner's own scores are optimistic, unless its repeats show otherwise."""
    recommendation = sweep.recommendation
    if recommendation is None or recommendation.trial.point_id != record.point_id:
        return ""
    goals, count = sweep.settings, len(Results([sweep]).candidates)
    repeats = judged_by_repeats(sweep.trials, goals.confirm)
    if record.point_id not in [repeated.point_id for repeated in repeats]:
        picked = f" Scores that the trial was picked by are optimistic: it is the best of {count}."
        return picked if count > 1 else ""
    return " These scores are of its run in the search; those with other seeds are at the top."


def _loading(kind: Kind, model: ModelConfig, method: Method) -> str:
    lines = _plain_loading(kind, model)
    if kind == "adapter" and not method.in_peft:
        lines = f"import trainables.tuners  # adds the adapter's kind to PEFT\n{lines}"
    if model.trust_remote_code:
        lines = re.sub(r"from_pretrained\([^,)]+", r"\g<0>, trust_remote_code=True", lines)
    return lines


def _plain_loading(kind: Kind, model: ModelConfig) -> str:
    if kind != "adapter":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("PATH")\n'
            'tokenizer = AutoTokenizer.from_pretrained("PATH")'
        )
    # Files in 4 bits say so themselves.
    method = quantisation_method(config_json(model, may_fetch=False))
    quantises = model.load_in_4bit and method is None
    lines = _ADAPTER.format(
        imported=", BitsAndBytesConfig" if quantises else "",
        quantization=_IN_4_BITS.format(dtype=model.dtype) if quantises else "",
        dtype=model.dtype,
        passed=", quantization_config=config" if quantises else "",
    )
    if not model.has_own_tokenizer:
        lines += 'base = model.peft_config["default"].base_model_name_or_path\n'
        return f"{lines}tokenizer = AutoTokenizer.from_pretrained(base)"
    lines += 'tokenizer = AutoTokenizer.from_pretrained("PATH")'
    ends = "\nmodel.generation_config.eos_token_id = tokenizer.eos_token_id"
    return lines + (ends if model.eos_token is not None else "")


def _summary(record: TrialRecord, base: BaseRecord) -> str:
    rows = []
    for key in (metric_keys.domain_metric(base.metrics), *_SUMMARY):
        own, before = record.metric(key), base.metrics.get(key)
        if own is not None:
            change = _change(before, own, ".3g" if key == metric_keys.KL_BASE_TO_TUNED else ".3f")
            rows.append((code(key), metric_text(key, before), metric_text(key, own), change))
    return table(("metric", "base", "this model", "change"), rows)


def _trained(record: TrialRecord, sweep: Sweep) -> TrialRecord:
    """The trial as training left it, with all its points."""
    return next(t for t in sweep.trials if t.config.trial_id == record.config.trial_id)


def _curve(record: TrialRecord, sweep: Sweep, adapter: Mapping[str, Any] | None) -> str:
    """What the trial is at other strengths, and repaired, and how to get it."""
    measured = metric_keys.domain_metric(sweep.base.metrics)
    wanted = (measured, metric_keys.FORGETTING_MEAN, metric_keys.OOD_ACC)
    trained = _trained(record, sweep)
    curve = [*trained.curve, *trained.repaired]
    keys = [key for key in wanted if any(point.metric(key) is not None for point in curve)]
    rows = [
        (
            code(point.repair) if point.repair else f"{point.strength:g}",
            *(metric_text(key, point.metric(key)) for key in keys),
        )
        for point in curve
    ]
    is_what = f"the base plus {record.strength:g} times what training changed"
    if record.repair:
        is_what = f"the trained model{REPAIRS[record.repair]}"
    options = "--strength S" + (" (or --repair NAME)" if trained.repaired else "")
    text = (
        f"## Strength\n\nThis is {is_what}, which was evaluated as well at:\n\n"
        f"{table(('strength', *map(code, keys)), rows)}\n\n"
        f"{code(f'python -m analysis export SWEEP --trial {record.number} {options} --to DIR')} "
        "writes another of them."
    )
    if (
        not record.repair
        and adapter
        and "lora_alpha" in adapter
        and record.config.method.scales_linearly
    ):
        text += (
            f" So does {code('lora_alpha')} in {code('adapter_config.json')}, multiplied by S / "
            f"{record.strength:g}."
        )
    return text


def _tasks(record: TrialRecord, base: BaseRecord) -> str:
    rows = [
        (
            escaped(task),
            _ROLES[score.role],
            escaped(score.metric),
            str(score.items),
            _with_error(score.value, score.stderr),
            _with_error(own, record.metric(f"{key}_stderr")),
            _change(score.value, own),
            _change(0.0, record.metric(metric_keys.task_forgetting(task))),
        )
        for task, score, key, own in base.scored(record)
    ]
    titles = ("task", "role", "metric", "items", "base", "this model", "change", "forgetting")
    return table(titles, rows)


def _warnings(warnings: Sequence[str]) -> str:
    return "## Warnings\n\n" + "\n".join(f"- {escaped(warning)}" for warning in warnings)


def _replayed(replay: Replay | None) -> str | None:
    if replay is None or not replay.share:
        return None
    source = "the data themselves, as a control of replay" if replay.control else code(replay.path)
    return f"{replay.share:g} of the samples, from {source}"


def _samples(record: TrialRecord) -> int | None:
    """Number of samples, which depends on how many of them the trial replays."""
    epochs, last = record.metric(metric_keys.EPOCH), record.last
    return round(last.step * record.config.train.batch_size / epochs) if last and epochs else None


def _training(record: TrialRecord, base: BaseRecord) -> str:
    config = record.config
    train, method = config.train, config.method
    steps = record.last.step if record.last else None
    trained = record.metric(metric_keys.TRAINABLE_PARAMETERS)
    facts: list[tuple[str, object]] = [
        ("base model", code(config.model.name)),
        ("revision", escaped(config.model.revision) if config.model.revision else None),
        ("parameters of the base", base.parameters),
        ("data", code(config.data.path)),
        ("replay", _replayed(config.data.replay)),
        ("training samples", _samples(record) or base.train_samples),
        ("recipe", escaped(config.recipe)),
        ("method", _named(method)),
        *((name.replace("_", " "), _written(value)) for name, value in method.columns.items()),
        ("loss", ", ".join(filter(None, (_named(config.loss), escaped(config.loss.label))))),
        ("peak learning rate", rate(config.learning_rate)),
        ("schedule", f"{train.schedule}, {train.warmup:g} of the steps warm-up"),
        ("optimizer steps", steps),
        ("samples per step", train.batch_size),
        ("longest sample", f"{config.data.max_length} tokens"),
        ("weight decay", f"{train.weight_decay:g}"),
        ("gradient clipping", f"{train.max_grad_norm:g}"),
        ("dtype", config.model.dtype + (", base in 4 bits" if config.model.load_in_4bit else "")),
        ("seed", config.seed),
        ("trained parameters", None if trained is None else f"{trained:.0f}"),
    ]
    return _facts(facts)


def _named(kind: Named) -> str:
    """Such as `LoRA (Hu et al. 2021, 2106.09685)`."""
    return escaped(f"{kind.title} ({kind.source})")


def _written(value: object) -> str:
    """A setting of a method."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return escaped(", ".join(value) if isinstance(value, tuple) else value)


def _provenance(record: TrialRecord, base: BaseRecord, sweep: SweepRecord) -> str:
    origin = sweep.origin(record)
    made = time.strftime("%Y-%m-%d", time.gmtime(record.ended or record.started))
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    return _facts(
        [
            ("sweep", code(sweep.sweep_id)),
            ("trial", code(record.config.trial_id)),
            ("date", made),
            ("code", f"git commit {code(origin.git_commit)}" if origin.git_commit else None),
            ("evaluation", f"{code(base.key)} (hash of base model, tasks and versions)"),
            ("Python", escaped(origin.python)),
            ("packages", escaped(versions)),
        ]
    )


def _facts(facts: Iterable[tuple[str, object]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts if value is not None)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _change(before: float | None, after: float | None, digits: str = ".3f") -> str:
    return ABSENT if before is None or after is None else f"{after - before:+z{digits}}"
