"""How far each input channel of the projections is scaled, by calibration: the exponents of FoldChannelScales.

Runs the float32 reference layer by layer and compares rounded products with float ones on some tokens and features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
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
from gemma_export.weights import Constant, Weight, one_thread

__all__ = ["ACTIVATION_AWARE", "SMOOTHING", "ChannelScales", "Method", "measure_channel_scales"]

# tokens of each sequence, and output features of each matrix, that products are compared on: features are quantised
# independently of each other, so that some of them speak for all
_TOKENS, _FEATURES = 32, 512
# 2^12 is more than any published outlier channel exceeds its neighbours; beyond it float32's range comes into sight
_LARGEST_EXPONENT = 12
# input of a product -> the modules that read it
_POINTS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
# (a, b): a channel is divided by activations^a / weights^b, the magnitudes of its activations and of their weights
Strength = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Which scales are tried, and which of them are taken."""

    # besides (0, 0), which leaves a point alone
    strengths: tuple[Strength, ...]
    # Of the norms that magnitudes are: 2 over tokens and output features, or infinity, the largest |value|
    order: float
    # of the squared error that may be left where a point is scaled
    worth: float
    # rounds scales to powers of two
    powers_of_two: bool


# The tries are SmoothQuant's (https://arxiv.org/abs/2211.10438), which takes 0.5 for every layer. Measured on a model
# without outliers any smoothing costs accuracy, and small gains on a sample do not carry over to other text: on the
# built-in model, taking each of them made the mean KL 1.16e-3 instead of 1.05e-3. Outliers gain far more than half.
SMOOTHING = Method(strengths=((0.25, 0.75), (0.5, 0.5), (0.75, 0.25)), order=math.inf, worth=0.5, powers_of_two=True)
# AWQ (https://arxiv.org/abs/2306.00978) tries activations^a; the error of blocks of even weights is least at
# (activations / weights)^(1/2), of blocks whose largest weight alone is scaled at 1: the truth is in between.
ACTIVATION_AWARE = Method(
    strengths=tuple((a / 10, b / 10) for a in range(7) for b in range(0, 7, 2) if a or b),
    order=2.0,
    worth=1.0,
    powers_of_two=False,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelScales:
    """What a calibration found."""

    # name of a projection's weight -> one exponent k per input channel: the channel is divided by 2^k; points that are
    # best left alone are absent
    exponents: Mapping[str, tuple[float, ...]]
    # name of a projection's weight -> the strength that rounds best, of all points
    strengths: Mapping[str, Strength]
    # tokens that it looked at
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"tokens": self.tokens, "strengths": {name: list(found) for name, found in self.strengths.items()}}

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
    exponents: dict[str, tuple[float, ...]] = {}
    strengths: dict[str, Strength] = {}
    with contextlib.closing(run.layers()) as layers:
        for layer in layers:
            inputs = _Inputs(method.order)
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
    """An observer of what a layer's products read: each channel's magnitude, and some of the tokens."""

    def __init__(self, order: float) -> None:
        self.magnitudes: dict[str, torch.Tensor] = {}
        self.sample: dict[str, list[torch.Tensor]] = {}
        self._order = order

    def __call__(self, tap: Tap, tensor: torch.Tensor) -> None:
        point = tap.name.removesuffix(".input")
        if not tap.name.endswith(".input") or point not in _POINTS:
            return
        rows = tensor.flatten(0, -2)
        own = torch.linalg.vector_norm(rows, self._order, dim=0, keepdim=True)
        if point in self.magnitudes:
            own = torch.cat([self.magnitudes[point][None], own])
        self.magnitudes[point] = torch.linalg.vector_norm(own, self._order, dim=0)
        self.sample.setdefault(point, []).append(_some(rows, _TOKENS).clone())


class _Choice:
    def __init__(self, spec: DecoderSpec, precision: Precision, method: Method, *, rounds_activations: bool) -> None:
        assert precision.scheme is not None
        self._spec, self._scheme, self._method = spec, precision.scheme, method
        self._rounds_activations = rounds_activations
        self._blocks, self._rows = block_quantiser(precision), row_quantiser(precision)

    def best(
        self, point: str, activations: torch.Tensor, sample: torch.Tensor, matrices: Mapping[str, torch.Tensor]
    ) -> tuple[Strength, tuple[float, ...]]:
        """The strength whose rounded products are nearest to the float ones on the sample, and its exponents.

        Args:
            point: of _POINTS.
            activations: their magnitudes, [channels].
            sample: [tokens, channels].
            matrices: those that multiply them, by name, [rows, channels] each.
        """
        order = self._method.order
        norms = [torch.linalg.vector_norm(matrix, order, dim=0) for matrix in matrices.values()]
        columns = torch.linalg.vector_norm(torch.stack(norms), order, dim=0)
        if point == "self_attn.o_proj":
            activations, columns = (self._by_value_head(channels) for channels in (activations, columns))
        features = {name: _some(matrix, _FEATURES) for name, matrix in matrices.items()}
        none = (0.0,) * len(columns)
        alone = self._error(none, sample, features)
        found = []
        for strength in self._method.strengths:
            exponents = _exponents(activations, columns, strength, powers_of_two=self._method.powers_of_two)
            found.append((self._error(exponents, sample, features), strength, exponents))
        error, strength, exponents = min(found)
        return (strength, exponents) if error < self._method.worth * alone else ((0.0, 0.0), none)

    def _error(self, exponents: Sequence[float], sample: torch.Tensor, matrices: Mapping[str, torch.Tensor]) -> float:
        """Squared error of the products, each token's relative to its own.

        A few tokens, BOS among them, are many times larger than the rest.
        """
        total = 0.0
        for name, matrix in matrices.items():
            scaled = ScaledColumns(Constant(matrix, name), exponents)
            quantised = self._blocks(name, scaled) or self._rows(name, scaled)
            if quantised is None:
                # stays in floating point
                continue
            inputs = sample / scaled.factors()
            if self._rounds_activations:
                layout = self._scheme.format_of(name, tuple(matrix.shape))
                block = layout.block_size if isinstance(layout, BlockFormat) else matrix.shape[1]
                inputs = round_activations(inputs, block)
            with one_thread():
                # pieces of a megabyte: torch's own threads would take five times as long
                rounded = torch.cat(list(quantised.dequantised()))
            expected = sample @ matrix.T
            lost = inputs @ rounded.T - expected
            total += float((lost.square().sum(1) / expected.square().sum(1).clamp(min=1e-30)).mean())
        return total

    def _by_value_head(self, channels: torch.Tensor) -> torch.Tensor:
        """Over the query heads that share a value head, for each of them."""
        groups = channels.view(self._spec.num_key_value_heads, -1, self._spec.head_dim)
        shared: torch.Tensor = torch.linalg.vector_norm(groups, self._method.order, dim=1, keepdim=True)
        return shared.expand_as(groups).reshape(-1)


def _some(rows: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` rows, evenly spread."""
    return rows[:: -(-len(rows) // count)]


def _exponents(
    activations: torch.Tensor, columns: torch.Tensor, strength: Strength, *, powers_of_two: bool
) -> tuple[float, ...]:
    """log2 of activations^a / columns^b, the middle channel at 0."""
    used = (activations > 0) & (columns > 0)
    if not used.any():
        return (0.0,) * len(columns)
    logarithms = strength[0] * activations.log2() - strength[1] * columns.log2()
    centred = logarithms - logarithms[used].median()
    rounded = (centred.round() if powers_of_two else centred).clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return tuple(torch.where(used, rounded, 0.0).tolist())
