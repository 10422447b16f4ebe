"""Float32 weights as an export's kernels will read them: quantised, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from gemma_export.precision import Precision
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight, DequantisedWeight
from gemma_export.precision.blockwise import block_quantiser
from gemma_export.precision.scheme import packed_name
from gemma_export.weights import Scale, Weight

__all__ = ["ExportedWeights"]


class ExportedWeights:
    """Name of a checkpoint's tensor -> what the export computes with, in float32.

    Args:
        weights: name -> lazy float32 weight of the model that is exported.
        stored: names in the data file, where query, key and value may be one matrix.
        factors: what a tensor is multiplied by before it is quantised (a rescaled residual stream): powers of two,
            so dividing afterwards is exact, and what is left is what the scales' type loses.
    """

    def __init__(self, weights: Callable[[str], Weight], stored: Collection[str], factors: Mapping[str, float]) -> None:
        self._weights, self._stored, self._factors = weights, frozenset(stored), factors

    def stored_name(self, name: str) -> str:
        """The matrix of the data file that holds a checkpoint's tensor."""
        packed = packed_name(name)
        return packed if packed in self._stored else name

    def plain(self, name: str) -> Weight:
        """The weight before it is quantised."""
        return self._weights(name)

    def quantised(self, name: str, precision: Precision) -> Weight:
        """The weight as a precision has it; as it is where the scheme leaves it alone."""
        weight, factor = self._weights(name), self._factors.get(name, 1.0)
        scaled = weight if factor == 1.0 else Scale(weight, factor)
        matrix = block_quantiser(precision)(self.stored_name(name), scaled)
        if matrix is None:
            return weight
        # the command line refuses --max-kl with the one format whose matrices are others
        assert isinstance(matrix, BlockWeight)
        return DequantisedWeight(matrix) if factor == 1.0 else Scale(DequantisedWeight(matrix), 1 / factor)

    def layout(self, name: str, precision: Precision) -> BlockFormat | None:
        """How a precision stores the weight; None for floating point."""
        assert precision.scheme is not None
        return precision.scheme.block_format_of(self.stored_name(name), self._weights(name).shape)
