"""What the structural checks look at: a folder's manifest, its graphs without weights, its configuration."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_export.config import DecoderSpec
from gemma_runtime.manifest import Graph, Manifest
from gemma_validation.artifact import residual_shift

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Finder", "FolderFacts", "attribute", "float32_of", "layer_of", "producers_of", "scalar_of", "stem"]

# targets that write out attention with a softcap or a window: their kernel would ignore both
_BY_PARTS = frozenset({"directml"})
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """A folder whose files are known to be those of its manifest."""

    directory: Path
    manifest: Manifest
    # config.json as the exporter reads it
    spec: DecoderSpec
    # graph file -> the graph, its weights unread
    models: Mapping[str, ir.Model]

    @property
    def graphs(self) -> Iterator[tuple[Graph, ir.Model]]:
        """The manifest's graphs and what their files hold."""
        return ((graph, self.models[graph.file]) for graph in self.manifest.graphs)

    @property
    def main(self) -> tuple[Graph, ir.Model]:
        """The main graph."""
        graph = self.manifest.graph("main")
        return graph, self.models[graph.file]

    @property
    def by_parts(self) -> tuple[int, ...]:
        """Layers whose attention is elementary operators and no kernel, ascending."""
        if self.manifest.target not in _BY_PARTS:
            return ()
        limited = (self.spec.attention_softcap or window for window in self.spec.windows)
        return tuple(layer for layer, limit in enumerate(limited) if limit)

    @property
    def residual_shift(self) -> int:
        """k of the residual stream's scale 2^-k."""
        return residual_shift(self.manifest)


# yields one line for each thing that is wrong: what was found where, and what was expected
Finder = Callable[[FolderFacts], Iterator[str]]


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value, or what it is when nobody writes it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def layer_of(name: str | None) -> int | None:
    """The layer that a node or a weight belongs to by its name."""
    found = _LAYER.match(name or "")
    return int(found[1]) if found else None


def producers_of(model: ir.Model) -> dict[str, ir.Node]:
    """Value -> the node that computes it."""
    return {str(value.name): node for node in model.graph for value in node.outputs if value.name}


def stem(node: ir.Node) -> str:
    """The module that a node computes: its name without the operator."""
    return str(node.name).rpartition(".")[0]


def float32_of(tensor: ir.TensorProtocol) -> npt.NDArray[np.float32]:
    """A tensor's elements."""
    array: npt.NDArray[Any] = np.asarray(tensor.numpy())
    return array.astype(np.float32)


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds; None for anything else."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(np.asarray(value.const_value.numpy()).reshape(-1)[0])
