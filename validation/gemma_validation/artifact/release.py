"""Which onnxruntime runs the graphs, for reports."""

from __future__ import annotations

import importlib.metadata

__all__ = ["onnxruntime_version"]

# each of them installs the package `onnxruntime`
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")


def onnxruntime_version() -> str:
    """The version of whichever of onnxruntime's distributions is installed; "unknown" where none of them is."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
