"""Which graph of a folder an onnxruntime release takes. Imports nothing heavy: the diagnosis asks it too."""

from __future__ import annotations

import re

from gemma_runtime.errors import ProviderError
from gemma_runtime.manifest import Graph, Manifest

__all__ = ["PROVIDERS", "graph_for", "release"]

# the manifest's and --provider's word -> onnxruntime's
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "directml": "DmlExecutionProvider"}


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparing."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def graph_for(manifest: Manifest, installed: tuple[int, ...]) -> Graph:
    """The main graph: one row at a time it does all that the others do.

    Raises:
        ProviderError: it needs a later release.
    """
    graph = manifest.graph("main")
    if release(graph.min_onnxruntime) > installed:
        raise ProviderError(
            f"{graph.file} needs onnxruntime {graph.min_onnxruntime} or later, found {'.'.join(map(str, installed))}",
            hint="pip install --upgrade the onnxruntime package that is installed.",
        )
    return graph
