"""Where the graph stores the checkpoint's matrices: packed with others, scaled, in which layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.scheme import WeightScheme
from gemma_export.weights import Concat, Scale, Weight, WeightTensor

__all__ = ["Placement", "bound_weights", "place"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """A quantised matrix of a lowered graph."""

    # tensors of the model whose rows join to it, in order, and the factor that the graph stores each times
    parts: tuple[tuple[str, float], ...]
    shape: tuple[int, ...]
    layout: BlockFormat
    quantiser: str


def bound_weights(model: ir.Model) -> dict[str, Weight]:
    """Name -> lazy float32 weight of a semantic graph: what the model is before any pass."""
    return {
        name: value.const_value.weight
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, WeightTensor)
    }


def place(model: ir.Model, bound: Mapping[str, Weight], scheme: WeightScheme) -> dict[str, Placement]:
    """Initializer -> placement, for every matrix that the scheme quantises and that is made of bound weights.

    Args:
        model: lowered, not yet quantised.
        bound: the same model's weights before any pass.
        scheme: layouts and quantisers.
    """
    names = {id(weight): name for name, weight in bound.items()}
    placements = {}
    for name, weight in bound_weights(model).items():
        layout = scheme.format_of(name, weight.shape)
        leaves = list(_leaves(weight, 1.0))
        if not isinstance(layout, BlockFormat) or not all(id(leaf) in names for leaf, _ in leaves):
            continue
        parts = tuple((names[id(leaf)], factor) for leaf, factor in leaves)
        placements[name] = Placement(
            parts=parts, shape=weight.shape, layout=layout, quantiser=scheme.quantiser_of(name)
        )
    return placements


def _leaves(weight: Weight, factor: float) -> Iterator[tuple[Weight, float]]:
    if isinstance(weight, Concat):
        for part in weight.weights:
            yield from _leaves(part, factor)
    elif isinstance(weight, Scale):
        yield from _leaves(weight.weight, factor * weight.factor)
    else:
        yield weight, factor
