"""One trial in a slot: what TRL's trainer is to a trial that trains alone.

It has a trainer's `model`, `optimizer`, `lr_scheduler`, `args` and `state`, so reports and
checkpoints are those of any other trial, and a trial can resume from a slot's checkpoint outside
a slot, and vice versa.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import Linear as PeftLinear
from safetensors.torch import save_file
from transformers import TrainerState, get_scheduler

from trainables.config import TrialConfig
from trainables.data.dataset import Sample, TokenizedData, labelled, training_order
from trainables.data.start_samples import start_samples
from trainables.data.tokenized import as_dataset, longest
from trainables.evaluation.evaluator import Evaluator
from trainables.methods.base import LowRankLayout
from trainables.models.adapter_start import Samples, start_layers
from trainables.models.loading import save_own_tokenizer
from trainables.packing.adapters import Adapter, Target
from trainables.packing.packed_optimizer import FlatAdamW
from trainables.records.schema import TrialResult
from trainables.training.best_weights import BestWeights
from trainables.training.checkpointing import AlreadyTrained, Checkpoints
from trainables.training.measuring import Measuring
from trainables.training.reporter import Reporter, StopTrial
from trainables.training.training_loop import conclude, sft_config

# Samples, of as many steps as have them: each read takes 0.1 ms, a step of a small model but 2.
_READ_AT_ONCE = 64


class Slot:
    """A trial's state between the passes that it shares with others.

    `targets` are the adapted layers of the frozen base, `resolved` is an adapter's configuration
    with base and layers as PEFT resolved them. `measuring` leaves out the time that went elsewhere.
    """

    def __init__(
        self,
        trial: TrialConfig,
        reporter: Reporter,
        base: Any,
        tokenizer: Any,
        tokenized: TokenizedData,
        targets: Sequence[Target],
        resolved: peft.PeftConfig,
    ) -> None:
        layout = trial.method.packed
        assert isinstance(layout, LowRankLayout)  # noqa: S101 - others have no slot
        self.trial = trial
        self.args = sft_config(trial, len(tokenized.train))
        self.state = TrainerState(max_steps=self.args.max_steps)
        samples = start_samples(trial, tokenizer, tokenized)
        values_P = initial_values(trial, self.args.max_steps, base, targets, samples)
        self.adapter = Adapter(layout, targets, values_P.to(base.device))
        self.model = AdaptedBase(base, self.adapter)
        self.optimizer = FlatAdamW(self.adapter, self.args, trial.method.rate)
        self.lr_scheduler = get_scheduler(
            self.args.lr_scheduler_type,
            self.optimizer.inner,
            self.args.get_warmup_steps(self.args.max_steps),
            self.args.max_steps,
        )
        self.generator = torch.Generator(base.device).manual_seed(trial.seed)  # of dropout
        self._reporter = reporter
        self._tokenizer, self._resolved = tokenizer, resolved
        self._train = as_dataset(tokenized.train)
        self._read: tuple[int, list[Sample]] = (-1, [])  # from a step on
        self._order = training_order(
            len(tokenized.train), self.args.max_steps * trial.train.batch_size, trial.seed
        )
        self._micro_batches_done = 0
        self._labelled_tokens: int | None = None  # of the current step, once counted
        self._loss = 0.0
        self._logs: dict[str, float] = {}
        self.measuring = Measuring(
            trial, reporter, tokenized, self.args.max_steps, has_own_process=False
        )
        self._checkpoints = Checkpoints(trial, reporter, self.measuring)
        self._best = BestWeights(trial, self._save)

    def restore(self) -> None:
        """Take over the newest checkpoint of any attempt, if there is one; `begin` follows.

        Raises:
            CheckpointLost: it is gone.
        """
        self.measuring.start(self)
        self._checkpoints.start(self, self._best)
        self._checkpoints.restore()

    def begin(self) -> None:
        """Do what a checkpoint's step still lacks, with the base adapted.

        Raises:
            EvaluationFailed: the checkpoint's step was still to be evaluated, and that failed.
        """
        with self._own_random_state():
            with suppress(AlreadyTrained):
                self._checkpoints.evaluate_missing()
            self._checkpoints.before_step()

    @property
    def is_trained(self) -> bool:
        """Whether all its steps are done."""
        return bool(self.state.global_step >= self.args.max_steps)

    def micro_batch(self) -> list[Sample]:
        """The samples of its next pass."""
        batch = self._batch()
        size = self.trial.train.micro_batch_size
        start = self._micro_batches_done * size
        return batch[start : start + size]

    def go_to(self, step: int) -> None:
        """Have that step's samples next."""
        self.state.global_step = step
        self._labelled_tokens = None

    def longest_micro_batch(self) -> list[Sample]:
        """The longest samples that it trains on, as many as in a pass."""
        size = self.trial.train.micro_batch_size
        samples: list[Sample] = self._train.__getitems__(longest(self._train, size))
        return samples

    @property
    def labelled_tokens(self) -> int:
        """Number of tokens that the current optimizer step's loss is averaged over, at least 1."""
        if self._labelled_tokens is None:
            self._labelled_tokens = max(1, sum(map(labelled, self._batch())))
        return self._labelled_tokens

    def _batch(self) -> list[Sample]:
        step, size = self.state.global_step, self.trial.train.batch_size
        ahead = max(1, _READ_AT_ONCE // size)
        first = step - step % ahead
        if self._read[0] != first:
            numbers = self._order[first * size : (first + ahead) * size]
            self._read = (first, self._train.__getitems__(numbers))
        start = (step - first) * size
        return self._read[1][start : start + size]

    def take_pass(self, loss: float) -> bool:
        """Count a pass whose gradient the adapter holds; returns if an optimizer step is due."""
        self._loss += loss
        self._micro_batches_done += 1
        return self._micro_batches_done == self.trial.accumulation_steps

    def restart_step(self) -> None:
        """Discard the passes since the last optimizer step."""
        self._loss, self._micro_batches_done = 0.0, 0
        self.optimizer.zero_grad()

    def take_step(self) -> torch.Tensor:
        """Clip and update, in the order of Transformers' trainer; `report` follows.

        Returns:
            The gradient norm before clipping, on its device, for `log_norm`.
        """
        self.adapter.freeze()
        norm = self.optimizer.clip(self.args.max_grad_norm)
        self.measuring.before_step()
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.state.num_input_tokens_seen += sum(len(s["input_ids"]) for s in self._batch())
        self.state.global_step += 1
        self._labelled_tokens = None
        self._logs = {"loss": self._loss}
        self._loss, self._micro_batches_done = 0.0, 0
        return norm

    def log_norm(self, norm: float) -> None:
        """Log the norm that `take_step` returned."""
        self._logs["grad_norm"] = norm

    def report(self) -> None:
        """Do whatever is due after the last step: report, save, evaluate.

        Raises:
            Diverged: the loss or the gradient norm is NaN or infinite.
        """
        with self._own_random_state():
            self.measuring.after_step(self._logs)
            self._checkpoints.after_step()

    def at_strengths(self) -> dict[float, AdaptedBase]:
        """The base with the trained adapter at each other strength of the trial."""
        method = self.trial.method
        return {
            strength: AdaptedBase(self.model.base, self.adapter.at_strength(method, strength))
            for strength in self.trial.strengths
        }

    def check_stop(self) -> None:
        """Raise `StopTrial` if the trial was asked to stop."""
        if self._reporter.stop_requested():
            raise StopTrial

    @property
    def evaluator(self) -> Evaluator | None:
        """The evaluator due after the last step; None if there is none."""
        is_due = self.measuring.is_report_step(self.state.global_step)
        return self.measuring.evaluator if is_due else None

    def finish(self) -> TrialResult:
        """Save the adapter."""
        return conclude(self.trial, self.measuring.last, self._best)

    def release(self) -> None:
        """Break reference cycles, so that the slot's tensors are freed with it."""
        del self.measuring, self._checkpoints, self._best

    def _save(self, folder: Path) -> None:
        """Save the adapter as PEFT does."""
        config = self.trial.method.peft_config(self.args.max_steps)
        config.target_modules = self._resolved.target_modules
        config.exclude_modules = self._resolved.exclude_modules
        config.base_model_name_or_path = self._resolved.base_model_name_or_path
        config.inference_mode = True
        config.save_pretrained(str(folder))
        tensors = {
            name.replace(".default", ""): tensor.detach().cpu().contiguous()
            for name, tensor in self.adapter.tensors.items()
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        save_own_tokenizer(self.trial.model, self._tokenizer, folder)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Make the slot's random state the process's, which checkpoints save and load."""
        on_gpu = self.generator.device.type == "cuda"
        library: Any = torch.cuda if on_gpu else torch
        with torch.random.fork_rng(devices=[self.generator.device] if on_gpu else []):
            library.set_rng_state(self.generator.get_state())
            yield
            self.generator.set_state(library.get_rng_state())


class AdaptedBase:
    """The base as one trial sees it while the base's layers are routed to its adapter."""

    def __init__(self, base: Any, adapter: Adapter) -> None:
        self.base = base
        self.adapter = adapter

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run a forward pass."""
        return self.base(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The adapter's parameters, which are the trained ones, under PEFT's names."""
        yield from self.adapter.tensors.items()

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The adapter's parameters."""
        yield from self.adapter.tensors.values()


def initial_values(
    trial: TrialConfig,
    steps: int,
    base: Any,
    targets: Sequence[Target],
    samples: Samples | None = None,
) -> torch.Tensor:
    """A fresh flat adapter on the CPU, as PEFT and the method start it from the trial's seed."""
    config = trial.method.peft_config(steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        layers = [
            PeftLinear(target.module, "default", config, r=config.r, lora_alpha=config.lora_alpha)
            for target in targets
        ]
        linears = [target.module for target in targets]
        adapted = list(zip(layers, linears, strict=True))
        start_layers(partial(nullcontext, base), adapted, trial.method, samples)
    factors = [
        factor.flatten()
        for layer in layers
        for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight.T)
    ]
    return torch.cat(factors).detach().cpu().float()
