"""A session of a graph that exists only in memory, over a folder's data files, which stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.manifest import Graph, Manifest
from gemma_validation.artifact.opening import open_graph

if TYPE_CHECKING:
    import onnx

__all__ = ["MemorySession"]


class MemorySession:
    """Runs a graph from `gemma_validation.localise.graphs` for one sequence at a time, from an empty cache.

    Args:
        model: the graph.
        directory: the exported folder.
        manifest: its manifest.
        graph: which of its graphs the model was made of.
        provider: "cpu", "cuda" or "directml".

    Raises:
        FolderUnreadableError: onnxruntime does not load the graph.
        ProviderUnavailableError: the provider does not start.
        MissingPackageError: no onnxruntime.
    """

    def __init__(
        self, model: onnx.ModelProto, directory: Path, manifest: Manifest, graph: Graph, *, provider: str
    ) -> None:
        content = model.SerializeToString()
        _, self._session = open_graph(directory, manifest, graph, provider=provider, content=content)

    def run(
        self, token_ids: Sequence[int], outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[np.float32]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Values [S, ...] of one sequence.

        Args:
            token_ids: of the sequence.
            outputs: names of the graph's outputs.
            feeds: what stands for points, [S, hidden_size] each.
        """
        ids = np.array([token_ids], np.int64)
        given: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        given |= {f"{name}.wide": array[None] for name, array in feeds.items()}
        for value in self._session.get_inputs():
            if value.name not in given:
                given[value.name] = _empty(value)
        found = self._session.run(list(outputs), given)
        return {name: array[0] for name, array in zip(outputs, found, strict=True)}


def _empty(value: Any) -> npt.NDArray[Any]:
    """A cache that holds nothing yet: every length is 0, the batch is 1."""
    shape = [size if isinstance(size, int) else int(size == "batch_size") for size in value.shape]
    return np.zeros(shape, np.int8 if value.type == "tensor(int8)" else np.float32)
