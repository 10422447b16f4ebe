"""An exported folder as something to ask: its graphs on onnxruntime, with any feeds."""

from __future__ import annotations

from gemma_validation.artifact.runner import ArtifactRunner, Cache, Step

__all__ = ["ArtifactRunner", "Cache", "Step"]
