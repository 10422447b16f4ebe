"""What a precision file provides: a format of activations, and with a weight scheme on top a quantised precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gemma_export.config import CacheState
from gemma_export.precision.cache_format import CacheFormat
from gemma_export.precision.scheme import WeightScheme

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DTYPE_BYTES", "Precision", "quantised"]

# of activations, of the scales of quantised weights, and of keys and values between steps
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
# what loaders append to a quantised file's suffix for the activations: _q4, _q4f16
_ACTIVATION_SUFFIX = {"float32": "", "float16": "f16", "bfloat16": "bf16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """One way to store weights and compute activations."""

    # the command line's flag without dashes, and the manifest's name
    name: str
    # between "model" and ".onnx": the names that loaders know
    suffix: str
    # ONNX names of the data types, lower case
    activation_dtype: str
    weight_dtype: str
    # stored bytes of a tensor that is not quantised: shape -> bytes
    stored_nbytes: Callable[[tuple[int, ...]], int]
    # rewrites a float32 graph in place; weights stay lazy
    apply: Callable[[ir.Model], None]
    # what is quantised, and how; None: every tensor is stored in weight_dtype
    scheme: WeightScheme | None = None
    # of keys and values between steps; None: activation_dtype
    cache: CacheFormat | None = None

    @property
    def state_dtype(self) -> str:
        """ONNX's name of the decoder state's type, lower case."""
        return self.activation_dtype if self.cache is None else self.cache.dtype

    def state_nbytes(self, states: Iterable[CacheState]) -> int:
        """Bytes of all keys and values of one token."""
        numbers = sum(len(state.past_names) * state.num_heads * state.head_dim for state in states)
        return numbers * DTYPE_BYTES[self.state_dtype]

    def cache_nbytes(self, states: Iterable[CacheState], tokens: int, *, windowed: bool) -> int:
        """Bytes of one row's keys and values of so many tokens.

        Args:
            states: decoder state, layer by layer.
            tokens: of the row.
            windowed: layers with a window keep no more than it.
        """
        return sum(
            self.state_nbytes((state,)) * (min(tokens, state.window) if windowed and state.window else tokens)
            for state in states
        )

    def stored(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
        """Name and size in bytes of each tensor that one of the target's tensors becomes."""
        layout = self.scheme.format_of(name, shape) if self.scheme is not None else None
        if layout is None:
            return ((name, self.stored_nbytes(shape)),)
        return layout.stored(name, shape, DTYPE_BYTES[self.activation_dtype])


def quantised(activations: Precision, scheme: WeightScheme) -> Precision:
    """A weight scheme under a format of activations: matrices in integers, all else as the format has it."""
    plain = activations.activation_dtype == "float32"
    return dataclasses.replace(
        activations,
        name=scheme.name if plain else f"{scheme.name}-{activations.name}",
        suffix=scheme.suffix + _ACTIVATION_SUFFIX[activations.activation_dtype],
        weight_dtype=scheme.name,
        scheme=scheme,
    )
