"""Which onnxruntime runs the graphs, for reports."""

from __future__ import annotations

from gemma_runtime.doctor.installed import owners_of

__all__ = ["onnxruntime_version"]


def onnxruntime_version() -> str:
    """The version of whichever distribution installs `onnxruntime`; "unknown" where none is known to."""
    return next((owner.version for owner in owners_of("onnxruntime")), "unknown")
