"""A model or adapter without a sweep, evaluated here beside its base."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from analysis.gate.plain_settings import PlainSettings
from analysis.gate.subject import Subject
from analysis.library_logging import quiet_libraries
from trainables.config import EvalSuite, ModelConfig
from trainables.errors import Fault, UserError, first_line
from trainables.evaluation.evaluator import Evaluation, shared_evaluator
from trainables.evaluation.forgetting import forgetting_metrics
from trainables.models.adapter import Adapted
from trainables.models.load_errors import LOAD_ERRORS
from trainables.models.loading import device, load_model
from trainables.process.out_of_memory import is_out_of_memory


def evaluate_plain(settings: PlainSettings, model: str, report: Callable[[str], None]) -> Subject:
    """Evaluate a base and a model on the same tasks, one after the other.

    Args:
        settings: the base, and the tasks.
        model: folder of a model or of a PEFT adapter on the base, or a hub model.
        report: called with what is evaluated next.

    Raises:
        UserError: a model, the adapter or a task cannot be loaded or evaluated.
    """
    folder = Path(model)
    adapter = folder if (folder / "adapter_config.json").exists() else None
    own = settings.of(model) if adapter is None else settings.base
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    report(f"evaluating the base {settings.base.name}")
    with redirect_stdout(sys.stderr), quiet_libraries():
        with _field("--base"):
            base = _evaluate(settings.base, settings.base, settings.suite, None)
        report(f"evaluating {model}")
        with _field("--model"):
            tokenizer = settings.of(model) if (folder / "tokenizer_config.json").exists() else own
            tuned = _evaluate(own, tokenizer, settings.suite, adapter)
    forgetting = forgetting_metrics(base.scores, tuned.scores, base.items, tuned.items)
    metrics = tuned.metrics | forgetting
    return Subject(
        model, f"base {settings.base.name}", metrics, tuned.scores, tuned.items, base.items
    )


def _evaluate(
    model: ModelConfig, tokenizer: ModelConfig, suite: EvalSuite, adapter: Path | None
) -> Evaluation:
    """Evaluate a model, with an adapter if one is given; `tokenizer` names whose is used."""
    evaluator = shared_evaluator(tokenizer, suite)
    loaded = load_model(model).to(device())
    try:
        return evaluator.evaluate(_with_adapter(loaded, adapter) if adapter else loaded)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        rule = f"memory runs out in the evaluation of {adapter or model.name}: {first_line(error)}"
        raise UserError([Fault("eval.batch_size", rule, "give --set eval.batch_size=1")]) from None


def _with_adapter(base: Any, folder: Path) -> Any:
    """The base with an adapter on it.

    Raises:
        UserError: it is damaged, or not of this base: PEFT would leave out what does not fit, so
            that it seems to forget nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            return Adapted.saved(base, folder).model
    except (*LOAD_ERRORS, UserWarning) as error:
        rule = f"cannot put the adapter {folder} on this base: {first_line(error)}"
        raise UserError([Fault("model.name", rule, "give the base it was trained on")]) from error


@contextmanager
def _field(option: str) -> Iterator[None]:
    """Name the option that a faulty model was given by."""
    try:
        yield
    except UserError as error:
        faults = [
            Fault(option, fault.rule, fault.remedy) if fault.field == "model.name" else fault
            for fault in error.faults
        ]
        raise UserError(faults) from error
