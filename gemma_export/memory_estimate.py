"""How much memory an export needs, estimated from shapes before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gemma_export.calibration import Sequences, needs_calibration
from gemma_export.checkpoint import QuantisedSource
from gemma_export.mixed_precision import matrices_of
from gemma_export.precision import Precision
from gemma_export.resolution import Resolved

__all__ = ["peak_memory"]

# Peak resident memory: interpreter, torch, onnx and the traced graph. Measured 438 MB for 2B and 447 MB for 7B in
# float16, whatever the source; the rest is room for other builds of torch. Weights in flight are a few megabytes.
_RESIDENT_BYTES, _RESIDENT_BYTES_PER_LAYER = 480 << 20, 1 << 20
# pieces of a matrix in flight between threads, in float32 and as codes
_QUANTISING_BYTES = 64 << 20
# longest prompt that the residual stream is measured on (gemma_export.headroom)
_PROBE_TOKENS = 1024
# output features that rounded products are compared on (gemma_export.calibration): scaled, in blocks, rounded back
_COMPARED_FEATURES, _COMPARED_COPIES = 512, 4
# What choosing a mixed precision keeps (gemma_export.mixed_precision): hidden states of every branch up to a limit,
# 512 positions each, and logits of a block of the vocabulary in float64, several times.
_BRANCH_BYTES, _BRANCH_POSITIONS, _LOGITS_BYTES = 512 << 20, 512, 320 << 20
# what calibration keeps of hidden states in memory, and of a matrix: weights, codes, candidates, activations
_HIDDEN_STATES_BYTES, _CALIBRATING_BYTES = 512 << 20, 448 << 20
# rows of second moments that are factorised at a time: half of them beyond the triangle, and their solution's copies
_STRIP_ROWS = 3 << 10


def peak_memory(
    resolved: Resolved,
    tensors: Mapping[str, tuple[int, ...]],
    largest: Precision,
    stored: Sequence[tuple[str, tuple[int, ...]]],
    calibration: Sequences | None = None,
) -> int:
    """Upper bound of the resident bytes of an export.

    Args:
        resolved: the request.
        tensors: tensor of the model -> shape.
        largest: the precision at its most bytes; another than the request's where one is to be chosen.
        stored: tensor of the data file and its shape.
        calibration: what the model is run on, where it is.
    """
    choosing = 0 if largest is resolved.precision else _choosing_memory(resolved, tensors, stored)
    spec, merge = resolved.spec, resolved.merge
    factors = 0 if merge is None else merge.resident_bytes
    resident = _RESIDENT_BYTES + spec.num_hidden_layers * _RESIDENT_BYTES_PER_LAYER
    calibrating = 0
    if calibration is not None:
        moments = needs_calibration(resolved.precision.scheme, stored)
        if moments or resolved.precision.cache is not None:
            calibrating = _calibrating_memory(resolved, tensors, calibration, moments=moments)
    stored_codes = 0 if resolved.checkpoint.quantisation is None else _stored_codes_memory(resolved)
    # one after the other
    working = max(_measuring_memory(resolved, tensors), choosing, calibrating)
    return resident + factors + working + stored_codes + _quantising_memory(largest, stored)


def _measuring_memory(resolved: Resolved, tensors: Mapping[str, tuple[int, ...]]) -> int:
    """What measuring stream or channels adds: one layer in float32, activations of the longest probe."""
    spec, scheme = resolved.spec, resolved.precision.scheme
    calibrates = scheme is not None and scheme.calibrates(resolved.checkpoint.kind)
    if resolved.residual_scale.shift is not None and not calibrates:
        return 0
    layer = sum(math.prod(shape) for name, shape in tensors.items() if ".layers.0." in name)
    tokens = min(_PROBE_TOKENS, spec.max_position_embeddings)
    # gate, its gelu, up and their product; scores, masked scores, weights and their sum's exponents
    activations = 4 * tokens * (spec.intermediate_size + spec.num_attention_heads * tokens)
    if calibrates:
        activations += _COMPARED_COPIES * _COMPARED_FEATURES * spec.intermediate_size
    return 4 * (layer + activations)


def _calibrating_memory(
    resolved: Resolved, tensors: Mapping[str, tuple[int, ...]], calibration: Sequences, *, moments: bool
) -> int:
    """What calibration adds: a layer, hidden states, activations or a piece being quantised.

    Of quantisers the layer and hidden states twice, as they are quantised and as they were; half the second moments of
    the widest input, in strips that are factorised; and at most as much as two of the largest matrices for what rows
    make up for.
    """
    layer = {name: shape for name, shape in tensors.items() if ".layers.0." in name}
    sizes = list(map(math.prod, layer.values()))
    widest = max(shape[-1] for shape in layer.values())
    hidden = min(_HIDDEN_STATES_BYTES, 4 * resolved.spec.hidden_size * calibration.tokens)
    values = 2 * sum(sizes) + widest * (widest // 2 + _STRIP_ROWS) + 2 * max(sizes) if moments else sum(sizes)
    return 4 * values + (1 + moments) * hidden + _CALIBRATING_BYTES


def _choosing_memory(
    resolved: Resolved, tensors: Mapping[str, tuple[int, ...]], stored: Sequence[tuple[str, tuple[int, ...]]]
) -> int:
    """What choosing a mixed precision adds: one layer in float32, its largest matrix once more, branches, logits."""
    layer = [math.prod(shape) for name, shape in tensors.items() if ".layers.0." in name]
    branches = 4 * _BRANCH_POSITIONS * resolved.spec.hidden_size * len(matrices_of(resolved.precision, stored))
    return 4 * (sum(layer) + 2 * max(layer)) + min(branches, _BRANCH_BYTES) + _LOGITS_BYTES


def _stored_codes_memory(resolved: Resolved) -> int:
    """A quantised checkpoint's largest matrix, packed: it lies the other way round."""
    view = resolved.checkpoint.view(resolved.stored)
    assert isinstance(view, QuantisedSource)
    return max(tensor.packed_bytes for tensor in view.quantised.values()) + _QUANTISING_BYTES


def _quantising_memory(precision: Precision, stored: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Scales and zero points of one matrix wait until its data is written, twice while they are joined.

    A transposed matrix waits as a whole, packed.
    """
    if precision.scheme is None:
        return 0
    waiting = [0]
    for name, shape in stored:
        layout = precision.scheme.format_of(name, shape)
        if layout is not None:
            (_, data), *levels = precision.stored(name, shape)
            waiting.append(2 * sum(nbytes for _, nbytes in levels) + (data if layout.transposed else 0))
    return max(waiting) + _QUANTISING_BYTES if any(waiting) else 0
