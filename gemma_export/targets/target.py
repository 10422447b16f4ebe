"""What a target file provides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemma_export.config import DecoderSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemma_export.weights import Weight

__all__ = ["Target"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Which passes, which operators, which data types, in which order."""

    name: str
    opset: int
    # "compacted": row b of present holds its real tokens at [0, T_b); "columns": it keeps the mask's columns
    cache_layout: str
    # activation dtype -> the execution providers that run it
    providers: Mapping[str, tuple[str, ...]]
    # the attention kernel's head sizes: multiples of this
    head_dim_multiple: int
    # steps of several tokens with a cache: "batched", "single" row only, or "none"; one token is always possible
    chunks: str
    # semantic graph -> the target's graph, in place; LastTokens, and what `settle` takes, is still semantic
    lower: Callable[[ir.Model], None]
    # what stays in float32 whatever the activations are: after the precision, in place
    settle: Callable[[ir.Model, DecoderSpec], None]
    # chooses the positions that get logits (0 means all) and finishes one twin, in place
    finish: Callable[[ir.Model, int], None]
    # takes from a finished twin, in place, what onnxruntime releases before the target's newest input lack; None
    # where there is no such input. What is left does single-row chunks
    compat: Callable[[ir.Model], None] | None
    # makes of a lowered twin, in place and before it is finished, one row and one position over a cache of full
    # capacity: what a CUDA graph is captured from. None where no provider of the target captures one
    static: Callable[[ir.Model], None] | None
    # raises unless the finished graph holds the fusions that the specification demands and only operators
    # that the given providers run in the given activation dtype
    check: Callable[[ir.Model, DecoderSpec, str], None]
    # (checkpoint tensors and shapes, specification) -> (name, shape) of every tensor of the data file, in its order
    stored_tensors: Callable[[Mapping[str, tuple[int, ...]], DecoderSpec], tuple[tuple[str, tuple[int, ...]], ...]]
    # the same target with the semantic operators kept as functions, where there is one
    with_functions: Target | None
    # (lowered float32 graph, quantised matrix of an initializer or None in the pass's own protocol, activation
    # dtype): puts the target's kernels for integer weights in place; None where the target has none
    quantise: Callable[[ir.Model, Callable[[str, Weight], Any], str], None] | None = None
    # (quantised float32 graph, row-quantised matrix of an initializer or None in the pass's own protocol): puts
    # products of 8-bit activations with 8-bit weights in place; None where the target has none
    quantise_activations: Callable[[ir.Model, Callable[[str, Weight], Any]], None] | None = None
    # how it stores them, a name of gemma_export.precision.scheme.FORMATS
    weight_format: str = "nbits"
    # activation dtypes whose products with integer weights round the activations too, to 8 bits in each block
    rounded_activations: frozenset[str] = frozenset()
    # other formats that it can store them in -> the target that does
    formats: Mapping[str, Target] = dataclasses.field(default_factory=dict)
    # (lowered graph in its final types, past tensor -> float32 scales): makes keys and values integers between steps;
    # None where the target's attention keeps the activations' type
    quantise_cache: Callable[[ir.Model, Mapping[str, Any]], None] | None = None
    # activation dtype -> the execution providers whose attention is known to run on such a cache
    cache_providers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # makes of a finished twin, in place, one whose layers with a window keep no more than it; None where no kernel does
    windowed: Callable[[ir.Model], None] | None = None

    def with_format(self, name: str | None) -> Target | None:
        """The target that stores integer weights in a format, None for its own; None if there is none."""
        return self if name in (None, self.weight_format) else self.formats.get(str(name))
