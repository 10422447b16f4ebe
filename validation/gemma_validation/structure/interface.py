"""What consumers of a graph depend on: names, symbols, element types, where its weights lie, what its twins share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from gemma_export.targets import TARGETS
from gemma_runtime.manifest import WINDOW_CAPACITY, Graph, Manifest
from gemma_validation.structure.facts import FolderFacts, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["data_locations", "element_types", "names_and_symbols", "shared_bytes", "twins", "versions"]

_IR_VERSION = 10
_DTYPES = {"FLOAT": "float32"}
_INTEGERS = frozenset({"bool", "int4", "int8", "int32", "int64", "uint4", "uint8"})
# What computes rows of rotary tables: angles are float32 whatever the activations are, and so is a cosine before its
# cast. In float16 positions beyond 2,048 would not be whole numbers.
# Attention that is written out is float32 from its scores to its softmax, as in the reference.
_FLOAT32_VALUES = re.compile(
    r"rotary(_local)?\.(angles|cos_float32|sin_float32|Cast_\d+)|rotary\.frequencies(_local)?"
    r"|model\.layers\.\d+\.self_attn\.(products_float32|shares|bent|capped|by_token|seen|by_row|weights)"
    r"|attention\.(lowest|softcap_.+)"
)
# Scales of an int8 cache, and of weights whose products come out in float32, keep 24 bits whatever the activations are
_FLOAT32_CONSTANTS = ("_scale", ".scales", ".scale")

_Interface = dict[str, tuple[str, list[int | str | None]]]


def names_and_symbols(facts: FolderFacts) -> Iterator[str]:
    """Inputs and outputs: names in order, element types, dimensions and their symbols."""
    for graph, model in facts.graphs:
        inputs, outputs = _expected(facts.manifest, graph)
        for what, values, expected in (
            ("inputs", model.graph.inputs, inputs),
            ("outputs", model.graph.outputs, outputs),
        ):
            found = {str(value.name): (_dtype(value), _dims(value)) for value in values}
            if list(found) != list(expected):
                yield f"{graph.file}: {what} are {', '.join(found)}, expected {', '.join(expected)}"
                continue
            for name, (dtype, dims) in found.items():
                if (dtype, dims) != expected[name]:
                    yield f"{graph.file}, {name}: {dtype} {dims}, expected {expected[name][0]} {expected[name][1]}"


def versions(facts: FolderFacts) -> Iterator[str]:
    """Opset of the target, IR version, no domain that runtimes would have to register."""
    target = TARGETS[facts.manifest.target]
    for graph, model in facts.graphs:
        if model.ir_version != _IR_VERSION:
            yield f"{graph.file}: ir_version is {model.ir_version}, expected {_IR_VERSION}"
        if model.opset_imports.get("") != target.opset:
            yield f"{graph.file}: opset is {model.opset_imports.get('')}, expected {target.opset}"
        strange = set(model.opset_imports) - {"", "com.microsoft", "gemma"}
        if strange or ("gemma" in model.opset_imports and not model.functions):
            yield f"{graph.file}: imports {', '.join(sorted(model.opset_imports))}, expected onnxruntime's own domains"


def data_locations(facts: FolderFacts) -> Iterator[str]:
    """Weights lie in the data file that is named after the main graph, by its plain name."""
    import onnx_ir as ir

    own = f"{PurePosixPath(facts.manifest.graph('main').file).name}_data"
    for graph, model in facts.graphs:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and not _is_own(str(tensor.location), own):
                yield f"{graph.file}, {name}: its data file is {tensor.location}, expected {own}"


def element_types(facts: FolderFacts) -> Iterator[str]:
    """Every floating-point value is of the precision's own type: another one means casts, or another number format."""
    activations = facts.manifest.precision.activation_dtype
    for graph, model in facts.graphs:
        for node in model.graph:
            for value in node.outputs:
                found = _dtype(value) if value.dtype is not None else activations
                if found not in _INTEGERS and found != activations and not _is_float32(str(value.name), found):
                    yield f"{graph.file}, {value.name}: {found}, expected {activations}"
        for name, value in model.graph.initializers.items():
            found = _dtype(value)
            constant = _is_float32(name, found) or (found == "float32" and name.endswith(_FLOAT32_CONSTANTS))
            if found not in _INTEGERS and found != activations and not constant:
                yield f"{graph.file}, {name}: {found}, expected {activations}"


def twins(facts: FolderFacts) -> Iterator[str]:
    """Graphs of one folder read the same bytes under the same name, by nodes with the same attributes."""
    main, reference = facts.main
    ranges = {name: _range(value) for name, value in reference.graph.initializers.items()}
    nodes = {node.name: node for node in reference.graph}
    for graph, model in facts.graphs:
        if graph is main:
            continue
        for name, value in model.graph.initializers.items():
            found = _range(value)
            if ranges.get(name, found) != found or (name not in ranges and not name.startswith(_OWN)):
                yield f"{graph.file}, {name}: not the same as in {main.file}"
        for node in model.graph:
            # what chooses the positions is what makes it a twin
            other = None if str(node.name).startswith(_OWN) else nodes.get(node.name)
            if other is not None and _told(node) != _told(other):
                yield f"{graph.file}, {node.name}: not the node of {main.file}"


def shared_bytes(facts: FolderFacts) -> Iterator[str]:
    """Two weights lie on the same bytes only where they are one: the embedding table and a tied head."""
    import onnx_ir as ir

    for graph, model in facts.graphs:
        tensors = [(name, value.const_value) for name, value in model.graph.initializers.items()]
        placed = sorted(
            (str(tensor.location), tensor.offset or 0, tensor.nbytes, name)
            for name, tensor in tensors
            if isinstance(tensor, ir.ExternalTensor)
        )
        for (file, start, size, name), (other_file, other_start, _, other) in itertools.pairwise(placed):
            tied = all(part.startswith(("model.embed_tokens.", "lm_head.")) for part in (name, other))
            if file == other_file and other_start < start + size and not tied:
                yield f"{graph.file}: {name} and {other} lie on the same bytes of {file}"


# prefixes of nodes and constants that serve the interface alone
_OWN = ("constant.", "logits_positions.", "rows.", "attention.", "decoder.")


def _expected(manifest: Manifest, graph: Graph) -> tuple[_Interface, _Interface]:
    """DESIGN: input_ids, attention_mask, past by layer; logits, present by layer."""
    single = graph.role == "static"
    batch: int | str = 1 if single else "batch_size"
    sequence: int | str = 1 if single else "sequence_length"
    positions: int | str = {"last": 1, "all": sequence}.get(str(graph.logits), "logits_length")
    inputs: _Interface = {
        "input_ids": ("int64", [batch, sequence]),
        "attention_mask": ("int64", [batch, "total_sequence_length"]),
    }
    outputs: _Interface = {
        "logits": (manifest.precision.activation_dtype, [batch, positions, manifest.vocab_size]),
    }
    for state in sorted(graph.state, key=lambda entry: entry.layer):
        heads = list(state.shape[1::2])
        past, present = ("past_sequence_length", "total_sequence_length")
        if state.windowed:
            past = present = WINDOW_CAPACITY
        for kind in ("key", "value"):
            inputs[f"past_key_values.{state.layer}.{kind}"] = (state.dtype, [batch, heads[0], past, heads[1]])
            outputs[f"present.{state.layer}.{kind}"] = (state.dtype, [batch, heads[0], present, heads[1]])
    return inputs, outputs


def _is_float32(name: str, dtype: str) -> bool:
    return dtype == "float32" and _FLOAT32_VALUES.fullmatch(name) is not None


def _dtype(value: ir.Value) -> str:
    name = value.dtype.name if value.dtype is not None else "no type"
    return _DTYPES.get(name, name.lower())


def _dims(value: ir.Value) -> list[int | str | None]:
    dims: Sequence[int | ir.SymbolicDim] = () if value.shape is None else tuple(value.shape)
    return [dim if isinstance(dim, int) else dim.value for dim in dims]


def _is_own(location: str, own: str) -> bool:
    # chunks of a large store: own, own_1, own_2, ...
    rest = location.removeprefix(own)
    return location.startswith(own) and (not rest or (rest[0] == "_" and rest[1:].isdigit()))


def _range(value: ir.Value) -> tuple[object, ...]:
    """Where a tensor lies, or what it is."""
    import onnx_ir as ir

    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        return (str(tensor.location), tensor.offset, tensor.length, tensor.dtype, tuple(tensor.shape.numpy()))
    if tensor is None:
        return ()
    return (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())


def _told(node: ir.Node) -> tuple[object, ...]:
    # how long its cache is belongs to the interface
    attributes = {name: attribute(node, name) for name in sorted(node.attributes) if name != "sliding_window_cache"}
    return (node.domain, node.op_type, repr(attributes))
