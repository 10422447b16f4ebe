"""Checks one .onnx file against its manifest entry, without reading any weight.

onnx's own checker and loader accept external data that is truncated, lies outside the folder or contradicts its
dims; onnxruntime maps what the graph says. So every reference is held against the manifest here, whose sizes and
hashes are checked elsewhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError

from gemma_export.errors import FolderError
from gemma_runtime.manifest import Graph, Manifest, State

__all__ = ["check_graph"]

# protobuf's own bound is 2 GiB; a graph of ours without its weights is about 2 MB
_MAX_GRAPH_BYTES = 256 << 20
# a tensor without elements may claim any other dim: 2^31 - 1 is what most kernels can count to
_MAX_DIM = 2**31 - 1
_KEYS = frozenset({"location", "offset", "length"})
_HINT = "The folder was altered or damaged: export it again."
_T = onnx.TensorProto
_BITS: dict[int, int] = {
    _T.INT4: 4,
    _T.UINT4: 4,
    _T.BOOL: 8,
    _T.INT8: 8,
    _T.UINT8: 8,
    _T.INT16: 16,
    _T.UINT16: 16,
    _T.FLOAT16: 16,
    _T.BFLOAT16: 16,
    _T.INT32: 32,
    _T.UINT32: 32,
    _T.FLOAT: 32,
    _T.INT64: 64,
    _T.UINT64: 64,
    _T.DOUBLE: 64,
}
_DTYPES = {"float32": _T.FLOAT, "float16": _T.FLOAT16, "bfloat16": _T.BFLOAT16, "int8": _T.INT8, "uint8": _T.UINT8}


def check_graph(folder: Path, manifest: Manifest, graph: Graph) -> int:
    """Checks the graph's references to data files, its inputs and outputs, its opset.

    Args:
        folder: the exported folder; its structure and sizes are already checked.
        manifest: the folder's manifest.
        graph: one of the manifest's graphs.

    Returns:
        How many tensors of the graph lie in data files.

    Raises:
        FolderError: names the file, the tensor or value, what was expected and what was found.
    """
    model = _parse(folder, manifest, graph.file)
    sizes = {entry.path: entry.size for entry in manifest.files}
    parent = PurePosixPath(graph.file).parent
    data = {PurePosixPath(path).name: sizes[path] for path in graph.data_files if PurePosixPath(path).parent == parent}
    external = 0
    for tensor, where in _tensors(model):
        if tensor.data_location == _T.EXTERNAL:
            _check_external(graph.file, tensor, where, data)
            external += 1
        else:
            _check_inline(graph.file, tensor)
    _check_opset(graph, model)
    _check_interface(graph, model)
    _check_logits(manifest, graph, model)
    return external


def _parse(folder: Path, manifest: Manifest, file: str) -> onnx.ModelProto:
    size = next(entry.size for entry in manifest.files if entry.path == file)
    if size > _MAX_GRAPH_BYTES:
        raise FolderError(f"{file}: expected at most {_MAX_GRAPH_BYTES} bytes of graph, found {size}", hint=_HINT)
    try:
        model: onnx.ModelProto = onnx.load_model(folder / file, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise FolderError(f"{file} is not an ONNX graph: {error}", hint=_HINT) from error
    except OSError as error:
        raise FolderError(f"{file} cannot be read: {error.strerror}", hint="Check the folder's rights.") from error
    if not model.graph.node or not model.graph.output:
        raise FolderError(f"{file}: expected a graph with nodes and outputs, found an empty one", hint=_HINT)
    return model


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Every tensor of the model, and whether it is an initializer: only those may be external."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
        for node in function.node:
            for attribute in node.attribute:
                yield from _attribute_tensors(attribute)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    for tensor in graph.initializer:
        yield tensor, True
    for sparse in graph.sparse_initializer:
        yield sparse.values, False
        yield sparse.indices, False
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    if attribute.HasField("t"):
        yield attribute.t, False
    for tensor in attribute.tensors:
        yield tensor, False
    for sparse in [
        *attribute.sparse_tensors,
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
    ]:
        yield sparse.values, False
        yield sparse.indices, False
    if attribute.HasField("g"):
        yield from _graph_tensors(attribute.g)
    for graph in attribute.graphs:
        yield from _graph_tensors(graph)


def _check_external(file: str, tensor: onnx.TensorProto, initializer: bool, data: Mapping[str, int]) -> None:
    where = f"{file}, tensor {tensor.name!r}"
    if not initializer:
        raise FolderError(f"{where}: only initializers may lie in a data file, found a node's constant", hint=_HINT)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or entries.keys() != _KEYS:
        found = ", ".join(repr(entry.key) for entry in tensor.external_data)
        raise FolderError(f"{where}: expected location, offset and length once each, found {found}", hint=_HINT)
    location = entries["location"]
    if location not in data:
        raise FolderError(
            f"{where}: expected a location in the manifest ({', '.join(data) or 'none'}), found {location!r}",
            hint=_HINT,
        )
    offset, length = _count(where, "offset", entries["offset"]), _count(where, "length", entries["length"])
    needed = _nbytes(where, tensor)
    if length != needed:
        raise FolderError(
            f"{where}: expected {needed} bytes for dims {list(tensor.dims)}, found length {length}", hint=_HINT
        )
    if offset + length > data[location]:
        raise FolderError(
            f"{where}: expected bytes inside {location} ({data[location]} bytes), found {offset} to {offset + length}",
            hint=_HINT,
        )


def _check_inline(file: str, tensor: onnx.TensorProto) -> None:
    where = f"{file}, tensor {tensor.name!r}"
    if tensor.external_data:
        raise FolderError(f"{where}: expected no data file for a tensor inside the graph, found one", hint=_HINT)
    if tensor.data_type == _T.STRING or not tensor.HasField("raw_data"):
        # typed fields: protobuf has counted their elements, the dims must not ask for more
        elements = _elements(where, tensor)
        if elements > tensor.ByteSize() * 2:
            raise FolderError(
                f"{where}: dims {list(tensor.dims)} need {elements} elements, found {tensor.ByteSize()} bytes",
                hint=_HINT,
            )
        return
    needed = _nbytes(where, tensor)
    if len(tensor.raw_data) != needed:
        raise FolderError(
            f"{where}: expected {needed} bytes for dims {list(tensor.dims)}, found {len(tensor.raw_data)}", hint=_HINT
        )


def _elements(where: str, tensor: onnx.TensorProto) -> int:
    for dim in tensor.dims:
        if not 0 <= dim <= _MAX_DIM:
            raise FolderError(f"{where}: expected dims between 0 and {_MAX_DIM}, found {list(tensor.dims)}", hint=_HINT)
    return math.prod(int(dim) for dim in tensor.dims)


def _nbytes(where: str, tensor: onnx.TensorProto) -> int:
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise FolderError(f"{where}: expected a known element type, found number {tensor.data_type}", hint=_HINT)
    return -(-_elements(where, tensor) * bits // 8)


def _count(where: str, key: str, text: str) -> int:
    # int() would also take "+1", "1_000" and other scripts' digits, of any length; 2^63 has 19
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise FolderError(f"{where}: expected a number of bytes as {key}, found {text[:40]!r}", hint=_HINT)
    return int(text)


def _check_opset(graph: Graph, model: onnx.ModelProto) -> None:
    found = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if found != [graph.opset]:
        raise FolderError(f"{graph.file}: expected opset {graph.opset}, found {found}", hint=_HINT)


def _check_interface(graph: Graph, model: onnx.ModelProto) -> None:
    past = [name for state in graph.state for name in state.past]
    present = [name for state in graph.state for name in state.present]
    _check_names(graph.file, "inputs", [*graph.inputs, *past], model.graph.input)
    _check_names(graph.file, "outputs", ["logits", *present], model.graph.output)
    values = {value.name: value for value in [*model.graph.input, *model.graph.output]}
    for state in graph.state:
        for name in (*state.past, *state.present):
            _check_state(graph.file, state, values[name], exact=name in state.past)


def _check_logits(manifest: Manifest, graph: Graph, model: onnx.ModelProto) -> None:
    """Element type and columns of the logits, and the positions that the graph's role promises."""
    logits = next(value for value in model.graph.output if value.name == "logits")
    tensor = logits.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    expected = [_DTYPES.get(manifest.precision.activation_dtype), manifest.vocab_size]
    found = [tensor.elem_type, dims[-1] if dims else None]
    positions = dims[1] if len(dims) == 3 else None
    if found != expected or (graph.logits == "last") != (positions == 1):
        raise FolderError(
            f"{graph.file}, logits: expected {graph.logits} positions of {manifest.vocab_size} "
            f"{manifest.precision.activation_dtype}, found {dims} of element type {tensor.elem_type}",
            hint=_HINT,
        )


def _check_names(file: str, what: str, expected: list[str], values: object) -> None:
    found = [value.name for value in values]  # type: ignore[attr-defined]
    # counted, not sorted: protobuf gives a name that is no UTF-8 as bytes, which have no order among texts
    if Counter(found) != Counter(expected):
        missing = sorted(set(expected) - set(found)) or [*sorted(set(found) - set(expected), key=repr), *found]
        raise FolderError(
            f"{file}: the graph's {what} differ from the manifest's: expected {len(expected)}, found {len(found)}; "
            f"first difference {missing[0]!r}",
            hint=_HINT,
        )


def _check_state(file: str, state: State, value: onnx.ValueInfoProto, *, exact: bool) -> None:
    """Dtype and shape of one state tensor; an output's symbols may differ: it holds more positions."""
    tensor = value.type.tensor_type
    found = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    expected = list(state.shape)
    if not exact:
        same = len(found) == len(expected)
        same = same and all(isinstance(want, str) or want == have for want, have in zip(expected, found, strict=True))
    else:
        same = found == expected
    if not same or tensor.elem_type != _DTYPES.get(state.dtype):
        known = tensor.elem_type in _T.DataType.values()
        name = _T.DataType.Name(tensor.elem_type) if known else f"element type {tensor.elem_type}"
        raise FolderError(
            f"{file}, {value.name}: expected {state.dtype} {expected}, found {name} {found}",
            hint=_HINT,
        )
