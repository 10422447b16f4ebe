"""Finding, checking and replacing semantic nodes: what every pass needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from gemma_export.channel_scales import gain_of
from gemma_export.errors import PassError
from gemma_export.weights import Scale, Weight, WeightTensor

__all__ = [
    "DOMAIN",
    "attributes_of",
    "drop_unused_initializers",
    "gain_value",
    "insert_before",
    "int64_constant",
    "nodes_of",
    "output_like",
    "refuse",
    "remove_unused",
    "replace",
    "replace_weights",
    "require_none",
    "tensor_value",
    "value_named",
    "weight_of",
    "weight_value",
]

# the semantic operators' domain (gemma_export.ops.semantic.DOMAIN, repeated because passes read graphs, not torch)
DOMAIN = "gemma"

Scalar = int | float | str

_Replacement = TypeVar("_Replacement")

_LOGICAL = frozenset({"And", "Equal", "Greater", "Less", "LessOrEqual", "Or"})


def nodes_of(model: ir.Model, op_type: str, domain: str = DOMAIN) -> list[ir.Node]:
    """The main graph's nodes of one operator, in order."""
    return [node for node in model.graph if node.domain == domain and node.op_type == op_type]


def require_none(model: ir.Model, op_type: str, pass_name: str) -> None:
    """Raises PassError if a semantic node of this type is left."""
    left = nodes_of(model, op_type)
    if left:
        raise PassError(
            f"{pass_name}: {len(left)} {op_type} nodes left, first {left[0].name}", hint="Report this with --debug."
        )


def refuse(node: ir.Node, pass_name: str, reason: str) -> PassError:
    """The error for a node that a pass must not rewrite."""
    return PassError(
        f"{pass_name} refuses {node.name} ({node.op_type}): {reason}",
        hint="This target cannot express the node; rewriting it would give wrong numbers. Report this with --debug.",
    )


def attributes_of(node: ir.Node, expected: Mapping[str, Scalar | None], pass_name: str) -> dict[str, Scalar]:
    """Every attribute of a node; an attribute that the pass does not know is refused.

    Args:
        node: a semantic node.
        expected: attribute name -> its default, or None where it must be present.
        pass_name: for the error.
    """
    unknown = sorted(set(node.attributes) - set(expected))
    if unknown:
        raise refuse(node, pass_name, f"unknown attribute {unknown[0]} = {node.attributes[unknown[0]].value!r}")
    found: dict[str, Scalar] = {}
    for name, default in expected.items():
        attribute = node.attributes.get(name)
        value = default if attribute is None else attribute.value
        if value is None:
            raise refuse(node, pass_name, f"attribute {name} is missing")
        found[name] = value
    return found


def weight_of(value: ir.Value | None, node: ir.Node, pass_name: str) -> Weight:
    """The lazy expression behind a weight input."""
    if value is None or not isinstance(value.const_value, WeightTensor):
        raise refuse(node, pass_name, f"input {value.name if value else None} is not a bound weight")
    return value.const_value.weight


def weight_value(graph: ir.Graph, name: str, weight: Weight, dtype: ir.DataType) -> ir.Value:
    """A new initializer over a lazy expression, or the existing one of that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(
        name=name,
        shape=ir.Shape(weight.shape),
        type=ir.TensorType(dtype),
        const_value=WeightTensor(weight, name),
    )
    graph.register_initializer(value)
    return value


def tensor_value(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer over a tensor, which takes the name too, or the existing one of that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor.name = name
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def replace_weights(
    graph: ir.Graph,
    choose: Callable[[str, Weight], _Replacement | None],
    rewrite: Callable[[ir.Node, int, str, _Replacement], None],
) -> bool:
    """Rewrites every reader of the weights that are stored otherwise; says whether there was any.

    Args:
        graph: with its weights bound.
        choose: (initializer, its lazy weight) -> what stands for it, or None for a weight that stays as it is.
        rewrite: (reader, position of the weight among its inputs, initializer, what stands for it).
    """
    modified = False
    for value in list(graph.initializers.values()):
        if not isinstance(value.const_value, WeightTensor):
            continue
        replacement = choose(str(value.name), value.const_value.weight)
        if replacement is not None:
            for use in list(value.uses()):
                rewrite(use.node, use.idx, str(value.name), replacement)
            modified = True
    if modified:
        drop_unused_initializers(graph)
    return modified


def gain_value(graph: ir.Graph, node: ir.Node, pass_name: str) -> ir.Value:
    """The gain (1 + w) * gain_scale of an RMSNorm node as an initializer, in float32 from the stored weight."""
    x, stored = node.inputs
    if x is None or x.dtype is None:
        raise refuse(node, pass_name, "its input has no type")
    weight = weight_of(stored, node, pass_name)
    assert stored is not None
    gain = gain_of(weight)
    scale = node.attributes.get("gain_scale")
    if scale is not None and scale.as_float() != 1.0:
        gain = Scale(gain, scale.as_float())
    return weight_value(graph, f"{str(stored.name).removesuffix('.weight')}.gain", gain, x.dtype)


def int64_constant(graph: ir.Graph, name: str, values: int | Sequence[int]) -> ir.Value:
    """A small int64 initializer (a scalar for an int, a vector for a sequence), one per name."""
    return tensor_value(graph, name, ir.tensor(np.asarray(values, dtype=np.int64)))


def output_like(value: ir.Value) -> ir.Value:
    """A fresh value with the same name, shape and type, to stand where `value` stood."""
    return ir.Value(name=value.name, shape=value.shape, type=value.type)


def replace(graph: ir.Graph, node: ir.Node, new_nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Puts `new_nodes` where `node` was; `outputs` take over its outputs, names and uses included."""
    for old, new in zip(node.outputs, outputs, strict=True):
        new.name = old.name
        new.shape = new.shape or old.shape
        new.type = new.type or old.type
    graph.insert_before(node, new_nodes)
    ir.convenience.replace_all_uses_with(list(node.outputs), list(outputs), replace_graph_outputs=True)
    graph.remove(node, safe=True)


def insert_before(graph: ir.Graph, anchor: ir.Node, tape: ir.tape.Tape, prefix: str) -> None:
    """Inserts a tape's nodes before `anchor`, naming unnamed values and nodes `{prefix}.{operator}_{n}`.

    Untyped values are the index arithmetic of the passes: int64, or bool where compared or joined.
    """
    for number, node in enumerate(tape.nodes):
        node.name = node.name or f"{prefix}.{node.op_type}_{number}"
        for value in node.outputs:
            value.name = value.name or node.name
            if value.type is None:
                value.type = ir.TensorType(_index_type(node))
    graph.insert_before(anchor, list(tape.nodes))


def _index_type(node: ir.Node) -> ir.DataType:
    if node.op_type in _LOGICAL:
        return ir.DataType.BOOL
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].value)
    # Unsqueeze of a mask is a mask
    source = node.inputs[0].dtype if node.op_type == "Unsqueeze" and node.inputs[0] is not None else None
    return source or ir.DataType.INT64


def value_named(graph: ir.Graph, name: str) -> ir.Value:
    """The value of a node or input by name.

    Raises:
        PassError: there is none; a pass ran out of order.
    """
    for value in _values(graph):
        if value.name == name:
            return value
    raise PassError(f"no value called {name!r} in the graph", hint="A pass ran out of order. Report this with --debug.")


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Removes initializers that no node reads any more."""
    outputs = {id(value) for value in graph.outputs}
    for name in [n for n, value in graph.initializers.items() if not value.uses() and id(value) not in outputs]:
        del graph.initializers[name]


def remove_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Removes a value's producer, and its producers in turn, once nobody reads them."""
    if value is None or value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is not None:
        inputs = list(producer.inputs)
        graph.remove(producer, safe=True)
        for other in inputs:
            remove_unused(graph, other)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
