"""How far two ways to run the same tokens may be apart: kernels sum in another order, and that is all."""

from __future__ import annotations

import dataclasses

from gemma_runtime.manifest import Manifest

__all__ = ["Bounds", "bounds_for", "same_shape_bounds"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Most that passes; both relative, see `differences`."""

    logits: float
    cache: float
    # where they come from, for the check's message
    reason: str


# Sums in another order: float32 measures 1e-6 to 1e-5 through a few layers, and other sizes of a batch choose other
# kernels; a token, a mask or a position that is wrong is 1e-2 and more.
_FLOAT32 = Bounds(logits=1e-4, cache=1e-4, reason="float32 sums in another order")
# 11 bits of mantissa; a CPU without such kernels works in float32 and rounds between nodes.
_FLOAT16 = Bounds(logits=2e-2, cache=2e-2, reason="float16 sums in another order")
# 8 bits of mantissa: by that ratio, not measured.
_BFLOAT16 = Bounds(logits=1.6e-1, cache=1.6e-1, reason="bfloat16 sums in another order")
# Activations rounded to 8 bits in each block or row: a sum in another order now and then turns a rounding tie, a 254th
# of one activation, and all logits move. Measured, one token against many: up to 0.046 over 2,400 positions of text on
# the tiny model, 0.036 on random weights of a 2B's shape; a wrong position is 0.3 and more.
_ROUNDED = Bounds(logits=1e-1, cache=1e-1, reason="a sum in another order turns a rounding tie of 8-bit activations")
_TYPES = {"float32": _FLOAT32, "float16": _FLOAT16, "bfloat16": _BFLOAT16}


def bounds_for(manifest: Manifest) -> Bounds:
    """The bounds of a precision: those of its activations' type, wider where kernels or the cache round to 8 bits."""
    found = _TYPES[manifest.precision.activation_dtype]
    rounds = manifest.precision.options.get("scheme") or any(
        state.dtype == "int8" for graph in manifest.graphs for state in graph.state
    )
    return _ROUNDED if rounds and found.logits < _ROUNDED.logits else found


# Graphs of one folder in the same shapes: the same kernels over the same numbers as far as the head, so that caches are
# the same bits on the CPU (measured in every precision); only the head's product, over fewer rows, sums in another
# order. Its rows are rounded to 8 bits each by itself: no tie turns. Measured through the built-in model: 2e-7 in
# float32, int4, int8 and int8-dynamic, 2e-5 in float16 without such kernels. Another processor's kernel for one row
# may round where the one for many does not: room for that, and still a fiftieth of a head that is 5 % off.
_SAME_FLOAT32 = Bounds(logits=1e-4, cache=1e-4, reason="the same steps in float32")
_SAME_ROUNDED = Bounds(logits=1e-3, cache=1e-3, reason="the same steps, rounded to 8 bits alike")
# a rounding of each logit or so
_SAME_FLOAT16 = Bounds(logits=2e-3, cache=2e-3, reason="the same steps in float16")
_SAME_BFLOAT16 = Bounds(logits=1.6e-2, cache=1.6e-2, reason="the same steps in bfloat16")
_SAME = {_FLOAT32: _SAME_FLOAT32, _FLOAT16: _SAME_FLOAT16, _BFLOAT16: _SAME_BFLOAT16, _ROUNDED: _SAME_ROUNDED}


def same_shape_bounds(manifest: Manifest) -> Bounds:
    """The bounds where two graphs of a folder take the same steps; see `bounds_for`."""
    found = _TYPES[manifest.precision.activation_dtype]
    return _SAME[_ROUNDED if found is _FLOAT32 and bounds_for(manifest) is _ROUNDED else found]
