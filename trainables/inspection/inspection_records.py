"""The result of inspecting a trial: `SWEEP/inspection/0007/record.json`.

It can always be derived again from the trial's weights and the base model.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from trainables.config import Frozen, TrialConfig
from trainables.errors import Fault, UserError
from trainables.records.schema import TrialRecord
from trainables.storage.disk import write_whole

MOST_SINGULAR_VALUES = 64
ROUNDED = (
    "the spectrum of full fine-tuning in bfloat16 includes the rounding of the saved weights, "
    "which makes small updates seem of high rank"
)
"""The caveat for every trial that `is_rounded`."""


def is_rounded(config: TrialConfig) -> bool:
    """Whether each weight, and so its update, was rounded to 2^-9 of the weight."""
    return config.method.changes_base and config.model.dtype == "bfloat16"


class MatrixChange(Frozen):
    """How training changed one weight matrix, W0 to W = W0 + dW.

    If dW is zero, all measures but the relative norm are None; if W0 is zero, as in inserted
    blocks, the relative norm and the last three. Divide ranks by `rank_limit` to compare methods.

    Attributes:
        layer: of the decoder, from 0.
        module: its name within the layer, such as `self_attn.q_proj`.
        shape: outputs, inputs.
        rank_limit: the largest possible rank of dW.
        relative_norm: norm_F(dW) / norm_F(W0), >= 0 (own).
        stable_rank: (norm_F(dW) / norm_2(dW))^2, 1 to `rank_limit`.
        effective_rank: exp of the entropy of the singular values, 1 to `rank_limit` (Roy and
            Vetterli 2007).
        rank_90: singular values that carry 90 % of the squared norm (2405.09673).
        singular_values: of dW, largest first; at most `MOST_SINGULAR_VALUES`.
        intruders: how many of the top 10 left singular vectors of W have abs(cos) < 0.5 with all
            of W0 (2410.21228).
        cosine_by_index: mean abs(cos(u0_i, u_i)) of the top 500 left singular vectors of W0 and
            W, paired by index (2512.15634, whose pairing is unknown).
        cosine_by_maximum: the same, each vector of W paired with the nearest of W0's top 500.
    """

    layer: int
    module: str
    shape: tuple[int, int]
    rank_limit: int
    relative_norm: float | None
    stable_rank: float | None = None
    effective_rank: float | None = None
    rank_90: int | None = None
    singular_values: tuple[float, ...] = ()
    intruders: int | None = None
    cosine_by_index: float | None = None
    cosine_by_maximum: float | None = None

    @property
    def is_cut(self) -> bool:
        """Whether dW may have more singular values than `singular_values`."""
        return len(self.singular_values) == MOST_SINGULAR_VALUES < self.rank_limit


class AttentionDrift(Frozen):
    """How the attention of one layer's heads moved, one number per head.

    Means over the queries of all prompts. "Without first" leaves out key 0, which often gets most
    of the attention whatever the text, and renormalises the rest.

    Attributes:
        layer: of the decoder, from 0.
        js: Jensen-Shannon divergence of base and tuned, bits, 0 to 1 (Hao et al., AACL 2020).
        entropy_shift: H_tuned - H_base, each divided by log(visible keys), -1 to 1, without the
            first query, which sees only one key (own).
    """

    layer: int
    js: tuple[float, ...]
    js_without_first: tuple[float, ...]
    entropy_shift: tuple[float, ...]
    entropy_shift_without_first: tuple[float, ...]


class RepresentationDrift(Frozen):
    """How the hidden states after one layer moved.

    Attributes:
        layer: of the decoder, from 0; the last is taken after the final norm.
        cka_drift: 1 - linear CKA over token positions, 0 to 1 (Kornblith et al. 2019).
        cka_drift_without_first: the same without each prompt's first token, whose hidden state may
            be so large that it alone determines the CKA (2402.17762).
    """

    layer: int
    cka_drift: float
    cka_drift_without_first: float


class InspectionRecord(Frozen):
    """What training changed inside one trial's model.

    Attributes:
        ended: when the trial's training ended.
        key: hash of the weights, the base and the version of the code.
        reason: why some part could not be inspected, which is then empty.
        prompts, tokens: how many were used to compare attention and representations.
        kl_base_to_tuned, forgetting_nll: KL and LM drift as measured in training, nats/token.
    """

    number: int
    trial_id: str
    ended: float | None = None
    key: str | None = None
    reason: str | None = None
    matrices: tuple[MatrixChange, ...] = ()
    attention: tuple[AttentionDrift, ...] = ()
    representation: tuple[RepresentationDrift, ...] = ()
    prompts: int = 0
    tokens: int = 0
    kl_base_to_tuned: float | None = None
    forgetting_nll: float | None = None
    seconds: float = 0.0

    def is_for(self, trial: TrialRecord) -> bool:
        """Whether it is of this training: a trial whose folder was deleted is trained again."""
        return (self.trial_id, self.ended) == (trial.config.trial_id, trial.ended)

    @property
    def intruders(self) -> int | None:
        """Intruder dimensions of all matrices together."""
        counts = [m.intruders for m in self.matrices if m.intruders is not None]
        return sum(counts) if counts else None

    @property
    def intruders_per_matrix(self) -> float | None:
        """Mean intruder dimensions of a matrix, comparable between numbers of matrices."""
        counts = [m.intruders for m in self.matrices if m.intruders is not None]
        return fmean(counts) if counts else None


class InspectionFolder:
    """Owner of every path below a sweep's `inspection` folder."""

    def __init__(self, sweep_dir: Path) -> None:
        self.root = sweep_dir / "inspection"

    def record_json(self, number: int) -> Path:
        """The record of one trial."""
        return self.root / f"{number:04d}" / "record.json"

    def directions(self, number: int) -> Path:
        """Top left singular vectors of each matrix's update, by the matrix's name."""
        return self.root / f"{number:04d}" / "directions.safetensors"

    def log(self, number: int) -> Path:
        """The output of a worker that inspected the trial."""
        return self.root / f"{number:04d}" / "inspect.log"

    def write(self, record: InspectionRecord) -> None:
        """Create or replace a trial's record; without matrices, remove their directions.

        Raises:
            UserError: it cannot be written.
        """
        try:
            write_whole(self.record_json(record.number), record.model_dump_json(indent=1))
            if not record.matrices:
                self.directions(record.number).unlink(missing_ok=True)
        except OSError as error:
            rule = f"cannot write to {self.root}: {error.strerror or error}"
            remedy = "make room or make it writable, or inspect a copy of the sweep"
            raise UserError([Fault("SWEEP_DIR", rule, remedy)]) from error

    def read(self, number: int) -> InspectionRecord | None:
        """A trial's record; None if there is none that this version can read."""
        try:
            return InspectionRecord.model_validate_json(self.record_json(number).read_bytes())
        except (OSError, ValidationError):
            return None
