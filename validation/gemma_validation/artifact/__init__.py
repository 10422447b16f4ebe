"""An exported folder as something to ask: its graphs on onnxruntime, with any feeds.

runner    a graph that was opened, and steps of it; opening opens it, tapping shows what is inside
residual  how the stream is stored
release   which onnxruntime it is
"""

from __future__ import annotations

from gemma_validation.artifact.opening import graph_of_role
from gemma_validation.artifact.release import onnxruntime_version
from gemma_validation.artifact.residual import residual_shift
from gemma_validation.artifact.runner import ArtifactRunner, Cache, Step
from gemma_validation.artifact.tapping import load_graph

__all__ = ["ArtifactRunner", "Cache", "Step", "graph_of_role", "load_graph", "onnxruntime_version", "residual_shift"]
