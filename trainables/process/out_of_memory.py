"""Trials that do not fit into memory: smaller batches at the same effective batch."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable
from typing import TypeVar

import torch

from trainables.config import EvalSuite, TrialConfig
from trainables.errors import EvaluationOutOfMemory, Fault, OutOfMemory, UserError, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")
# CUDA and HIP; cuDNN; their BLAS, whose handles take memory too; NCCL, by the last of its warnings
# ("Cuda failure 2 'out of memory'", "Failed to CUDA calloc 8 bytes"); torch's CPU allocator.
_MESSAGE = re.compile(
    r"out of memory|can(?:'|no)t allocate memory|_ALLOC(?:ATION)?_FAILED"
    r"|Failed to CUDA (?:host )?[cm]?alloc"
    r"|_NOT_INITIALIZED when calling .?(?:cu|hip)blas(?:Lt)?Create",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a device or the host ran out of memory."""
    if isinstance(error, (OutOfMemory, torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_MESSAGE.search(str(error)))


def train_within_memory(train: Callable[[TrialConfig], T], config: TrialConfig) -> T:
    """Run a trial; if memory runs out, resume from its newest checkpoint with smaller batches.

    Steps between the checkpoint and the failure are trained, and reported, again.

    Raises:
        OutOfMemory: even at batches of one sample; names the sizes that were tried.
    """
    tried: list[str] = []
    while True:
        free_memory()
        try:
            return train(config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            config = with_smaller_batches(config, tried, error)
            logger.warning("out of memory at %s: %s", tried[-1], first_line(error))


def evaluated_within_memory(evaluate: Callable[[EvalSuite], T], suite: EvalSuite) -> T:
    """Evaluate, halving the batch as long as memory runs out.

    Raises:
        UserError: it does even at one sample at a time.
    """
    while True:
        free_memory()
        try:
            return evaluate(suite)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory at evaluation batch size %d", suite.batch_size)
            if suite.batch_size == 1:
                rule = f"memory runs out at one sample at a time: {first_line(error)}"
                remedy = "take a smaller model, shorter tasks or larger GPUs"
                raise UserError([Fault("eval.batch_size", rule, remedy)]) from None
        suite = suite.model_copy(update={"batch_size": suite.batch_size // 2})


def with_smaller_batches(
    config: TrialConfig, tried: list[str], error: BaseException
) -> TrialConfig:
    """The trial with the batch that was too large for memory halved.

    In training that is the micro-batch: gradients are accumulated over more of them, so the
    optimizer sees the same batches. `tried`: the sizes that were too large; this one is added.

    Raises:
        OutOfMemory: it was one sample already.
    """
    if isinstance(error, EvaluationOutOfMemory):
        size = config.eval.batch_size
        tried.append(f"evaluation batch size {size}")
        if size > 1:
            return config.with_eval_batch(size // 2)
    else:
        size = config.train.micro_batch_size
        tried.append(f"micro-batch size {size}")
        if size > 1:
            return next(config.in_micro_batches(size // 2))
    remedies = ["a shorter data.max_length"]
    if not config.train.gradient_checkpointing:
        remedies.append("train.gradient_checkpointing: true")
    if config.deepspeed:
        stage = config.deepspeed.stage_field
        remedies += ["more resources.full.workers", f"a higher {stage}", "offloading"]
    raise OutOfMemory(
        f"out of memory at {', then '.join(tried)}: {first_line(error)}; "
        f"try {', '.join(remedies)}, or larger GPUs"
    ) from None


def free_memory() -> None:
    """Release memory that is no longer used, such as of a trainer and its callbacks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
