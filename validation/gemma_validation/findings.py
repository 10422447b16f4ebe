"""What a validation finds, as data: made by checks and metrics, read by budgets and reports. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

__all__ = [
    "EXIT_CODES",
    "NOT_FINITE",
    "SCHEMA_VERSION",
    "Alternative",
    "Check",
    "Distribution",
    "Drift",
    "Flip",
    "Gate",
    "GreedyDivergence",
    "LayerPoint",
    "Localisation",
    "Outcome",
    "PositionDrift",
    "ReferenceAbout",
    "Report",
    "Subject",
    "Verdict",
]

SCHEMA_VERSION = 1
# in place of an error that is NaN or infinite, which JSON has no numbers for
NOT_FINITE = 1e30

Outcome = Literal["passed", "failed", "inconclusive", "skipped"]
Verdict = Literal["passed", "drift", "inconclusive", "broken"]
# broken: structure is wrong or a value is not finite
EXIT_CODES: Mapping[Verdict, int] = {"passed": 0, "drift": 6, "inconclusive": 9, "broken": 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at without a reference: the folder's structure, or an invariance of the artifact."""

    group: Literal["structure", "invariance"]
    # unique within the group, lower case: "hashes", "chunks of 7"
    name: str
    outcome: Outcome
    # one line: what was found where, and what was expected; why it was skipped
    message: str
    # where a number decides: what was measured, and the most that passes
    measured: float | None = None
    bound: float | None = None
    # false where a value was NaN or infinite: the folder is broken then, whatever the group
    finite: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """A quantity over positions."""

    mean: float
    median: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """How far the test's next-token distributions are from the reference's, over one slice of the text or all."""

    # "all", or a slice: "code", "prose", ...
    slice: str
    documents: int
    positions: int
    # KL(reference || test), nats
    kl: Distribution
    # Upper ends of 95 % intervals, by paired block bootstrap over documents (metrics/bootstrap.py). Budgets are held
    # against these. The largest KL and the largest difference have none: no draw exceeds what was seen.
    kl_mean_upper: float
    kl_median_upper: float
    kl_p95_upper: float
    kl_p99_upper: float
    kl_p999_upper: float
    top1_disagreement_upper: float
    # as a share of all positions
    decisive_flips_upper: float
    top10_misses_upper: float
    perplexity_ratio_upper: float
    probability_shift_rms_upper: float
    normalised_mse_upper: float
    # |p_test - p_reference| of the token that follows in the text: mean and root of the mean square
    probability_shift_mean: float
    probability_shift_rms: float
    # mean negative log-likelihood of the text, nats a token
    nll_reference: float
    nll_test: float
    # exp(nll_test - nll_reference)
    perplexity_ratio: float
    # share of positions whose most likely token is the same
    top1_agreement: float
    # positions where it is not: the reference's margin between its best two is above tau, or not
    decisive_flips: int
    near_ties: int
    # mean share of the reference's ten most likely tokens that are among the test's
    top10_overlap: float
    # sum of squared logit differences over the sum of squared reference logits, each centred by its row's mean
    normalised_mse: float
    # largest |logit difference| in standard deviations of the reference's logits
    max_difference: float
    # true where the reference knows only its most likely tokens (a golden pack): KL is then a lower bound
    lower_bound: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionDrift:
    """One document's KL by position, for a chart: nats, in order."""

    slice: str
    document: str
    # index of the first position
    first: int
    kl: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternative:
    """A token that might follow."""

    token_id: int
    text: str
    logprob: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip:
    """A position where the most likely token changed although the reference was sure."""

    slice: str
    document: str
    position: int
    # the text before it, its end
    context: str
    # logits between the reference's best two
    margin: float
    # the five most likely
    reference: tuple[Alternative, ...]
    test: tuple[Alternative, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyDivergence:
    """Free-running greedy text of both sides behind one prompt."""

    slice: str
    document: str
    # tokens compared
    tokens: int
    # index of the first token that differs; None: none does
    first: int | None
    # the reference's margin there, logits
    margin: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One point of the residual stream."""

    # "embedding", "layers.3.attn_residual", "layers.3.mlp_residual", "norm", "logits"
    point: str
    layer: int | None
    # squared difference over squared reference, of the test's own stream; 1e30 where a value is not finite
    cumulative: float
    # squared difference with the reference's stream fed into this half of the layer, over the square of what the half
    # adds to the stream; None where it was not measured
    injected: float | None
    # largest |value| of the test's stream, as it is stored; of the reference's where the test's is not finite
    peak: float
    # bits between it and the largest number of the activations' format (float32: of float16, which is what a float16
    # export of the model would have to fit), negative where the stream overflows; None for a stream of zeros
    headroom_bits: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Localisation:
    """Where the drift comes from."""

    points: tuple[LayerPoint, ...]
    # the point whose injected error stands out, if one does
    culprit: str | None
    # one line
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """One bound of the budget."""

    # "kl_mean", "top1_disagreement", ... (gemma_validation.budgets)
    metric: str
    slice: str
    bound: float
    # why it is what it is, from the budget file
    reason: str
    measured: float
    # upper end of the 95 % interval: it decides. None for the largest values, and where a single event counts
    upper: float | None
    outcome: Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """The folder that was validated, and what ran it."""

    directory: str
    variant: str | None
    family: str
    precision: str
    target: str
    provider: str
    onnxruntime: str
    # SHA-256 of the data files' entries in the manifest, joined: which weights these are
    weights_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceAbout:
    """What the folder was compared with."""

    kind: Literal["transformers", "layerwise", "folder", "golden", "none"]
    # checkpoint, folder or file
    name: str
    # "float32"
    dtype: str
    # releases of what computed it
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A whole run."""

    subject: Subject
    reference: ReferenceAbout
    suite: Literal["quick", "full"]
    verdict: Verdict
    # one line each: what decided the verdict, worst first
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    # "all" first, then slices
    drift: tuple[Drift, ...]
    # the reference's own bfloat16 run against it, as a noise floor; empty where there is none
    noise_floor: tuple[Drift, ...]
    gates: tuple[Gate, ...]
    positions: tuple[PositionDrift, ...]
    flips: tuple[Flip, ...]
    greedy: tuple[GreedyDivergence, ...]
    localisation: Localisation | None
    # margin above which a changed token is a decisive flip, logits
    tau: float
    # seconds of each stage, in order
    seconds: Mapping[str, float]
    started: str

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it (schemas/report.schema.json)."""
        return {"schema_version": SCHEMA_VERSION, "exit_code": self.exit_code, **dataclasses.asdict(self)}
