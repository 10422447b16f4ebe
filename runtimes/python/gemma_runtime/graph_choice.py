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
    """The main graph, or the twin that asks less of onnxruntime: one row at a time they compute the same.

    Raises:
        ProviderError: every graph needs a later release.
    """
    for graph in manifest.graphs:
        if graph.role in ("main", "compat") and release(graph.min_onnxruntime) <= installed:
            return graph
    raise ProviderError(
        f"no graph of this folder runs on onnxruntime {'.'.join(map(str, installed))}; the main one needs "
        f"{manifest.graph('main').min_onnxruntime}",
        hint="pip install --upgrade the onnxruntime package that is installed.",
    )
