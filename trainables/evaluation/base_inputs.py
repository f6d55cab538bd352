"""What the base's evaluation needs: loaded and checked before anything is measured."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from trainables.compat.transformers import attention_kind
from trainables.config import BaseRequirements, DataConfig, EvalSuite, ModelConfig
from trainables.data.dataset import TokenizedData, tokenize
from trainables.data.rows import read_general_text
from trainables.errors import Fault, UserError, collecting, error_text, first_line
from trainables.evaluation.evaluator import Evaluator, shared_evaluator
from trainables.evaluation.model_limits import check_samples
from trainables.models.adaptable import check_adaptable
from trainables.models.loading import fingerprint, load_tokenizer, pinned, shared_base
from trainables.process.lost_process import end_with_lost_device
from trainables.process.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseInputs:
    """What the base is evaluated on.

    Attributes:
        model: pinned to a revision.
        base: the model, shared by this process.
        tokenized: the training data, with as many prompts as the KL drift is measured on.
        documents: general texts.
    """

    model: ModelConfig
    base: Any
    tokenizer: Any
    evaluator: Evaluator
    tokenized: TokenizedData
    documents: list[str]

    def score_inputs(self) -> dict[str, object]:
        """All that the base's scores depend on, beside this code."""
        model = self.model
        return {
            "model": fingerprint(model),
            "dtype": model.dtype,
            "load_in_4bit": model.load_in_4bit,
            "attention": attention_kind(self.base.config.get_text_config()),
            "chat_template_args": model.chat_template_args,
            "eos_token": model.eos_token,
            "chat_template": self.tokenizer.chat_template if model.chat_template else None,
            "tasks": self.evaluator.describe(),
            "general": self.documents,
            "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")},
        }


def load_inputs(
    model: ModelConfig,
    data: DataConfig,
    suite: EvalSuite,
    seed: int,
    requirements: BaseRequirements,
) -> BaseInputs:
    """Load all that a trial will need, so that errors show before one is started.

    Raises:
        UserError: every fault found in model, data, tasks and requirements.
    """
    model = pinned(model)
    faults: list[Fault] = []
    tokenizer: Any = None
    evaluator: Evaluator | None = None
    tokenized: TokenizedData | None = None
    with collecting(faults):
        tokenizer = load_tokenizer(model)
    if tokenizer is not None:
        with collecting(faults):
            check_base(model, requirements)
        with collecting(faults):
            _check_chat_template(tokenizer, model, data, suite)
    with collecting(faults):
        # Trials of this process use it too; without a tokenizer, task faults are still reported.
        evaluator = shared_evaluator(model, suite) if tokenizer else Evaluator(suite, tokenizer)
    if tokenizer and (tokenizer.chat_template or not data.has_chats):
        with collecting(faults):
            tokenized = tokenize(data, tokenizer, seed)
    if tokenized is not None and not (suite.in_domain or tokenized.validation):
        name = "data.validation_path" if data.validation_path else "data.validation_fraction"
        rule = f"must give a row of at most {data.max_length} tokens, as eval.in_domain is empty"
        faults.append(Fault(name, rule, "take more or other rows, or raise data.max_length"))
    if faults or tokenizer is None or evaluator is None or tokenized is None:
        raise UserError(faults)
    base = shared_base(model)
    check_samples(base, tokenizer, tokenized)
    tokenized = replace(tokenized, prompts=tokenized.prompts[: suite.kl_prompts])
    return BaseInputs(model, base, tokenizer, evaluator, tokenized, general_documents(suite))


def check_base(model: ModelConfig, requirements: BaseRequirements) -> None:
    """Load the base model shared by this process, and check that trials can be run on it.

    Raises:
        UserError: it cannot be loaded, does not fit into memory, cannot compute, or does not meet
            the requirements.
    """
    try:
        base = shared_base(model)
        _check_passes(base, load_tokenizer(model), model)
        check_adaptable(base, requirements)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        rule = (
            f"memory runs out while {model.name} is loaded, whole, into the process that evaluates "
            f"the base: {first_line(error)}"
        )
        remedy = "take a smaller model or larger GPUs"
        raise UserError([Fault("model.name", rule, remedy)]) from None


def _check_passes(base: Any, tokenizer: Any, model: ModelConfig) -> None:
    """Check the base's first passes, so that what it cannot do is reported before all else."""
    try:
        tokens_1S = tokenizer("1 2 3", return_tensors="pt")["input_ids"].to(base.device)
        with torch.no_grad():
            base(input_ids=tokens_1S, use_cache=False)
    except Exception as error:  # models run their own code: anything
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        end_with_lost_device()
        logger.warning("the first pass of %s", model.name, exc_info=True)
        rule = (
            f"{model.name} cannot compute in {model.dtype} what follows a text: {error_text(error)}"
        )
        remedy = "take another model.dtype, or a model that generates text with Transformers alone"
        raise UserError([Fault("model.name", rule, remedy)]) from error


def _check_chat_template(
    tokenizer: Any, model: ModelConfig, data: DataConfig, suite: EvalSuite
) -> None:
    asking = {
        data.chat_field: data.is_chat,
        "eval.chat_template": suite.chat_template,
        "data.replay": data.replay is not None and data.replay.is_chat,
    }
    fields = [field for field, is_asked in asking.items() if is_asked]
    if fields and tokenizer.chat_template is None:
        rule = f"the tokenizer of {model.name} has no chat template"
        remedy = "leave it out, set model.chat_template, or take a model that was tuned to chat"
        raise UserError([Fault(field, rule, remedy) for field in fields])


def general_documents(suite: EvalSuite) -> list[str]:
    """The texts of `eval.general_text`.

    Raises:
        UserError: it is missing, malformed or empty.
    """
    return [] if suite.general_text is None else read_general_text(suite.general_text)
