"""Copies of exported folders whose graphs were edited: right by their hashes, wrong by what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from folders import altered

from gemma_runtime.manifest import read_manifest

__all__ = ["attribute", "constant", "edited", "named", "nodes_of"]

Edit = Callable[[onnx.ModelProto], None]


def edited(folder: Path, target: Path, edit: Edit, roles: Sequence[str] | None = None) -> Path:
    """A copy of a folder with some of its graphs edited, all of them by default."""
    files: dict[str, bytes | None] = {}
    for graph in read_manifest(folder).graphs:
        if roles is None or graph.role in roles:
            model = onnx.load(folder / graph.file, load_external_data=False)
            edit(model)
            files[graph.file] = model.SerializeToString()
    return altered(folder, target, files)


def nodes_of(model: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    """All nodes of an operator, in order."""
    return [node for node in model.graph.node if node.op_type == op_type]


def named(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    """The node that computes a value."""
    return next(node for node in model.graph.node if output in node.output)


def attribute(node: onnx.NodeProto, name: str, value: float | int | str) -> None:
    """Sets an attribute."""
    for found in node.attribute:
        if found.name == name:
            node.attribute.remove(found)
            break
    node.attribute.append(onnx.helper.make_attribute(name, value))


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """An initializer."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)
