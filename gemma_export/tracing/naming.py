"""Readable, reproducible names for what the tracer left: the module path of each node, no torch internals."""

from __future__ import annotations

import ast

import onnx_ir as ir

from gemma_export.errors import TracingError
from gemma_export.ops.residual_add import POINT

__all__ = ["name_values"]

# torch's exporter keeps the module path of each node under this key
_SCOPES = "pkg.torch.onnx.name_scopes"
# the wrapper that flattens the interface (tracing.trace)
_WRAPPER = "decoder."


def name_values(model: ir.Model) -> None:
    """Names nodes and values after the modules that made them, and drops the tracer's metadata.

    A residual sum is called by its point, an initializer by its checkpoint tensor, anything else
    `{module path}.{operator}`. The tracer's metadata holds stack traces with paths of the exporting machine.

    Raises:
        TracingError: two values would get the same name.
    """
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        value.name = value.name.removeprefix(_WRAPPER)
    interface = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        point = node.metadata_props.get(POINT)
        node.name = point or f"{_module_path(node)}.{node.op_type}"
        for value in node.outputs:
            if id(value) not in interface:
                value.name = node.name
    _clear_metadata(model)
    names = [value.name for node in model.graph for value in node.outputs]
    if len(set(names)) != len(names):
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        raise TracingError(
            f"traced values share names: {', '.join(twice[:5])}",
            hint="Give each operator of a module its own submodule; this is a bug of the family file.",
        )


def _module_path(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['decoder', '']"))
    # the last entry is torch's own name for the node
    path: str = scopes[-2]
    return (path + ".").removeprefix(_WRAPPER).removesuffix(".") or "decoder"


def _clear_metadata(model: ir.Model) -> None:
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
