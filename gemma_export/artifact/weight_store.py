"""One weight store under several graphs: which initializers share bytes, and the graphs that refer to them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Protocol

import onnx
import onnx_ir as ir

from gemma_export.artifact.plan import DataPlan, Range, plan_data
from gemma_export.errors import InternalError

__all__ = ["ByteSink", "WeightStore", "write_tensor"]


class ByteSink(Protocol):
    """What a tensor can be written to."""

    def write(self, data: bytes, /) -> int:
        """Takes all of `data`; returns its size."""


class WeightStore:
    """The distinct tensors of several graphs, laid out in one data file.

    Two initializers are one range of bytes when they hold the same tensor object, or when the `weight` of both (the
    lazy expression behind it) is the same object: twins of a graph, an embedding table and the head tied to it, one
    table read in two shapes. Tensors with one `group` (parts of a quantised matrix, made in one go) lie side by side.
    Small and string tensors stay inside their graphs.

    Args:
        models: the graphs, in the order that decides the order of the data file.

    Raises:
        InternalError: an initializer without a value, or one range claimed with two sizes.
    """

    def __init__(self, models: Sequence[ir.Model]) -> None:
        tensors: dict[int, tuple[str, ir.TensorProtocol]] = {}
        for model in models:
            for value in _initializers(model):
                tensor = _tensor(value)
                name, first = tensors.setdefault(_identity(tensor), (str(value.name), tensor))
                if first.nbytes != tensor.nbytes:
                    raise InternalError(
                        f"initializers {name} and {value.name} share one weight, expected equal sizes, "
                        f"found {first.nbytes} and {tensor.nbytes} bytes",
                        hint="A pass reshaped a shared weight wrongly. Report this bug.",
                    )
        groups: dict[int, list[int]] = {}
        for identity, (_, tensor) in tensors.items():
            groups.setdefault(id(getattr(tensor, "group", tensor)), []).append(identity)
        self._identities = [identity for members in groups.values() for identity in members]
        # holding the tensors keeps their identities valid
        self._tensors = [tensors[identity][1] for identity in self._identities]
        named = {identity: (name, _planned_bytes(tensor)) for identity, (name, tensor) in tensors.items()}
        self.plan: DataPlan = plan_data([named[identity] for identity in members] for members in groups.values())
        self._ranges = {self._identities[entry.index]: entry for entry in self.plan.ranges}

    def tensor(self, entry: Range) -> ir.TensorProtocol:
        """The tensor whose bytes fill a range of the plan."""
        return self._tensors[entry.index]

    def serialize(self, model: ir.Model, location: str) -> bytes:
        """The bytes of the .onnx file; the same model gives the same bytes. The model is left as it is.

        Args:
            model: one of the models of this store.
            location: the data file's name, without a directory: graphs and data lie side by side.
        """
        copy = model.clone()
        for value in _initializers(copy):
            tensor = _tensor(value)
            entry = self._ranges.get(_identity(tensor))
            if entry is not None:
                value.const_value = _external(value, tensor, entry, location)
            elif tensor.dtype != ir.DataType.STRING:
                value.const_value = _inline(value, tensor)
        proto: onnx.ModelProto = ir.serde.serialize_model(copy)
        content: bytes = proto.SerializeToString(deterministic=True)
        return content


def write_tensor(tensor: ir.TensorProtocol, file: ByteSink) -> None:
    """Writes a tensor's bytes, in chunks where the tensor can: `tofile` is no part of onnx_ir's protocol."""
    stream = getattr(tensor, "tofile", None)
    if stream is not None:
        stream(file)
    else:
        file.write(tensor.tobytes())


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise InternalError(
            f"initializer {value.name} has no value to write", hint="A weight was never bound. Report this bug."
        )
    return value.const_value


def _identity(tensor: ir.TensorProtocol) -> int:
    return id(getattr(tensor, "weight", tensor))


def _planned_bytes(tensor: ir.TensorProtocol) -> int:
    # ONNX has no raw bytes for strings: they cannot be external
    return 0 if tensor.dtype == ir.DataType.STRING else tensor.nbytes


def _external(value: ir.Value, tensor: ir.TensorProtocol, entry: Range, location: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location,
        entry.offset,
        entry.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(value.name),
    )


def _inline(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    proto = onnx.TensorProto(name=str(value.name), data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    content = io.BytesIO()
    write_tensor(tensor, content)
    proto.raw_data = content.getvalue()
    return ir.serde.TensorProtoTensor(proto)
