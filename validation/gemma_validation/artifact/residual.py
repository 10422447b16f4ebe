"""How a folder stores the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

from gemma_runtime.manifest import Manifest

__all__ = ["residual_shift"]


def residual_shift(manifest: Manifest) -> int:
    """k of the 2^-k that the stream is stored times; 0 where nothing sensible is said."""
    options = manifest.precision.options.get("residual_scale")
    shift = options.get("shift") if isinstance(options, Mapping) else None
    return shift if isinstance(shift, int) else 0
