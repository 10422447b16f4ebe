"""What a precision file provides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Precision"]


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
    # stored bytes of a tensor: shape -> bytes
    stored_nbytes: Callable[[tuple[int, ...]], int]
    # rewrites a float32 graph in place; weights stay lazy
    apply: Callable[[ir.Model], None]
