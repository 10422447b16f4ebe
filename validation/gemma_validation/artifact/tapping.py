"""A graph with some of its internal values as further outputs; the folder stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_validation.errors import FolderUnreadableError

if TYPE_CHECKING:
    import onnx

__all__ = ["load_graph", "tapped"]


def load_graph(file: Path) -> onnx.ModelProto:
    """Reads a graph without its weights.

    Raises:
        FolderUnreadableError: it cannot be read, or is no graph.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model(file, format="protobuf", load_external_data=False)
    except (OSError, DecodeError) as error:
        raise FolderUnreadableError(
            f"{file.parent.name}/{file.name} is no graph that can be read: {error}",
            hint="`gemma-export verify` checks the folder; export it again.",
        ) from error


def tapped(file: Path, taps: Sequence[str]) -> bytes:
    """The graph of a file with internal values as outputs, behind its own.

    Weights stay in the data file: the bytes are those of the graph alone.

    Args:
        file: of the graph.
        taps: names of values that nodes of the graph compute.

    Raises:
        FolderUnreadableError: the graph computes no such value.
    """
    model = load_graph(file)
    outputs = {value.name for value in model.graph.output}
    computed = {name for node in model.graph.node for name in node.output if name}
    declared = {value.name: value for value in model.graph.value_info}
    for tap in dict.fromkeys(taps):
        if tap not in computed:
            raise FolderUnreadableError(
                f"{file.parent.name}/{file.name} computes no {tap!r}",
                hint="The graph was altered or comes from another release: export it again.",
            )
        if tap not in outputs:
            value = model.graph.output.add()
            if tap in declared:
                value.CopyFrom(declared[tap])
            else:
                # onnxruntime infers the type
                value.name = tap
    content: bytes = model.SerializeToString()
    return content
