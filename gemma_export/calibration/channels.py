"""How far each input channel of the projections is scaled, by calibration: the exponents of FoldChannelScales.

Runs the float32 reference layer by layer and compares rounded products with float ones on some of the tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gemma_export.channel_scales import ScaledColumns
from gemma_export.config import DecoderSpec
from gemma_export.families import Family
from gemma_export.layerwise import LayerwiseRun, Tap, reference_stack
from gemma_export.precision.activations import round_activations
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.blockwise import block_quantiser, row_quantiser
from gemma_export.precision.precision import Precision
from gemma_export.progress import Progress
from gemma_export.weights import Constant, Weight

__all__ = ["SMOOTHING", "ChannelScales", "Method", "measure_channel_scales"]

# tokens of each sequence that products are compared on
_SAMPLE = 32
# 2^12 is more than any published outlier channel exceeds its neighbours; beyond it float32's range comes into sight
_LARGEST_EXPONENT = 12
# input of a product -> the modules that read it
_POINTS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Which scales are tried, and which of them are taken."""

    # A channel is divided by activations^a / columns^b: the magnitudes of its activations and of what multiplies
    # them. (a, b) of each try
    strengths: tuple[tuple[float, float], ...]
    # of a channel's activations [tokens, channels] -> [channels]
    magnitude: Callable[[torch.Tensor], torch.Tensor]
    # of the squared error that may be left where a point is scaled
    worth: float


# The tries are SmoothQuant's (https://arxiv.org/abs/2211.10438), which takes 0.5 for every layer. Measured on a model
# without outliers any smoothing costs accuracy, and small gains on a sample do not carry over to other text: on the
# built-in model, taking each of them made the mean KL 1.16e-3 instead of 1.05e-3. Outliers gain far more than half.
SMOOTHING = Method(
    strengths=((0.25, 0.75), (0.5, 0.5), (0.75, 0.25)), magnitude=lambda rows: rows.abs().amax(0), worth=0.5
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelScales:
    """What a calibration found."""

    # name of a projection's weight -> one exponent k per input channel: the channel is divided by 2^k; points that are
    # best left alone are absent
    exponents: Mapping[str, tuple[int, ...]]
    # name of a projection's weight -> the strength that rounds best, of all points; 0 leaves it alone
    strengths: Mapping[str, float]
    # tokens that it looked at
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"tokens": self.tokens, "strengths": dict(self.strengths)}

    def note(self) -> str:
        """For people, a line."""
        found = f"{len(self.exponents)} of {len(self.strengths)}"
        return f"channels scaled in {found} inputs of projections, as {self.tokens:,} tokens of calibration text ask"


def measure_channel_scales(
    family: Family,
    spec: DecoderSpec,
    weights: Callable[[str], Weight],
    batches: Sequence[torch.Tensor],
    precision: Precision,
    method: Method,
    *,
    rounds_activations: bool,
    progress: Progress | None = None,
) -> ChannelScales:
    """Exponents for every layer's four inputs of projections.

    Args:
        family, spec: the architecture.
        weights: name -> lazy float32 weight of the model that is exported.
        batches: token ids of the calibration text, int64 [1, length] each, BOS first.
        precision: has the scheme that quantises.
        method: what is tried and taken.
        rounds_activations: whether products with integer weights round activations to 8 bits too.
        progress: told of the weights' bytes.

    Memory: one layer in float32, and the activations of the longest sequence.

    Raises:
        NonFiniteError: an activation or weight is NaN or infinite in float32.
        CheckpointError: a weight cannot be read.
    """
    stack = reference_stack(family, spec, positions=max(batch.shape[1] for batch in batches))
    run = LayerwiseRun(stack, weights, batches, progress=progress, label="calibrating channels")
    choice = _Choice(spec, precision, method, rounds_activations=rounds_activations)
    exponents: dict[str, tuple[int, ...]] = {}
    strengths: dict[str, float] = {}
    with contextlib.closing(run.layers()) as layers:
        for layer in layers:
            inputs = _Inputs(method)
            layer.advance(inputs)
            for point, modules in _POINTS.items():
                names = {module: stack.layer_weight(layer.index, f"{module}.weight") for module in modules}
                matrices = {name: layer.module.get_parameter(f"{module}.weight") for module, name in names.items()}
                with torch.no_grad(), run.threads():
                    found = choice.best(point, inputs.magnitudes[point], torch.cat(inputs.sample[point]), matrices)
                strengths[names[point]], chosen = found
                if any(chosen):
                    exponents[names[point]] = chosen
    return ChannelScales(exponents=exponents, strengths=strengths, tokens=sum(batch.numel() for batch in batches))


class _Inputs:
    """An observer of what a layer's products read: each channel's largest magnitude, and some of the tokens."""

    def __init__(self, method: Method) -> None:
        self.magnitudes: dict[str, torch.Tensor] = {}
        self.sample: dict[str, list[torch.Tensor]] = {}
        self._magnitude = method.magnitude

    def __call__(self, tap: Tap, tensor: torch.Tensor) -> None:
        point = tap.name.removesuffix(".input")
        if not tap.name.endswith(".input") or point not in _POINTS:
            return
        rows = tensor.flatten(0, -2)
        own = self._magnitude(rows)
        self.magnitudes[point] = torch.maximum(self.magnitudes[point], own) if point in self.magnitudes else own
        step = -(-len(rows) // _SAMPLE)
        self.sample.setdefault(point, []).append(rows[::step].clone())


class _Choice:
    def __init__(self, spec: DecoderSpec, precision: Precision, method: Method, *, rounds_activations: bool) -> None:
        self._spec, self._method, self._rounds_activations = spec, method, rounds_activations
        assert precision.scheme is not None
        self._scheme = precision.scheme
        self._blocks, self._rows = block_quantiser(precision), row_quantiser(precision)

    def best(
        self, point: str, magnitudes: torch.Tensor, sample: torch.Tensor, matrices: Mapping[str, torch.Tensor]
    ) -> tuple[float, tuple[int, ...]]:
        """The strength whose rounded products are nearest to the float ones on the sample, and its exponents.

        Args:
            point: of _POINTS.
            magnitudes: [channels].
            sample: [tokens, channels].
            matrices: those that multiply them, by name, [rows, channels] each.
        """
        columns = torch.stack([matrix.abs().amax(0) for matrix in matrices.values()]).amax(0)
        if point == "self_attn.o_proj":
            magnitudes, columns = (self._by_value_head(channels) for channels in (magnitudes, columns))
        none = (0,) * len(columns)
        alone = self._error(none, sample, matrices)
        found = []
        for activations, weights in self._method.strengths:
            exponents = _exponents(magnitudes, columns, activations, weights)
            found.append((self._error(exponents, sample, matrices), activations, exponents))
        error, strength, exponents = min(found)
        return (strength, exponents) if error < self._method.worth * alone else (0.0, none)

    def _error(self, exponents: Sequence[int], sample: torch.Tensor, matrices: Mapping[str, torch.Tensor]) -> float:
        """Squared error of the products, each token's relative to its own.

        A few tokens, BOS among them, are many times larger than the rest.
        """
        total = 0.0
        for name, matrix in matrices.items():
            scaled = ScaledColumns(Constant(matrix, name), exponents)
            quantised = self._blocks(name, scaled) or self._rows(name, scaled)
            if quantised is None:
                continue
            inputs = sample / scaled.factors()
            layout = self._scheme.format_of(name, tuple(matrix.shape))
            if self._rounds_activations:
                inputs = round_activations(
                    inputs, layout.block_size if isinstance(layout, BlockFormat) else len(exponents)
                )
            squares, lost, row = torch.zeros(len(sample)), torch.zeros(len(sample)), 0
            for rows in quantised.dequantised():
                expected = sample @ matrix[row : row + len(rows)].T
                squares += expected.square().sum(1)
                lost += (inputs @ rows.T - expected).square().sum(1)
                row += len(rows)
            total += float((lost / squares.clamp(min=1e-30)).mean())
        return total

    def _by_value_head(self, channels: torch.Tensor) -> torch.Tensor:
        """The largest over the query heads that share a value head, for each of them."""
        groups = channels.view(self._spec.num_key_value_heads, -1, self._spec.head_dim)
        return groups.amax(1, keepdim=True).expand_as(groups).reshape(-1)


def _exponents(activations: torch.Tensor, columns: torch.Tensor, a: float, b: float) -> tuple[int, ...]:
    """Whole numbers k: log2 of activations^a / columns^b, the middle channel at 0."""
    used = (activations > 0) & (columns > 0)
    logarithms = a * activations.log2() - b * columns.log2()
    if not used.any():
        return (0,) * len(columns)
    rounded = (logarithms - logarithms[used].median()).round().clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return tuple(int(exponent) for exponent in torch.where(used, rounded, 0.0).tolist())
