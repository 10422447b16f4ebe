"""Two variations of an artifact's graph, made in memory over the same data file.

tapped   every point is an output: the artifact's own stream
fed      every point is an input too: each half of a layer computes from the stream that it is given, so that the
         difference at its output is what this half alone adds. One run measures all of them.

All inputs and outputs that are made here are float32: numpy has no bfloat16, and widening is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemma_validation.localise.points import Point

if TYPE_CHECKING:
    import onnx

__all__ = ["ZEROS", "computed_values", "fed_input", "fed_model", "tap_output", "tapped_model"]

# input of the fed graph: zeros of the stream's shape
ZEROS = "feed.zeros"


def computed_values(model: onnx.ModelProto) -> set[str]:
    """Names of what the nodes compute."""
    return {output for node in model.graph.node for output in node.output if output}


def tap_output(point: Point) -> str:
    """Name of the output at which a point is seen."""
    return f"tap.{point.name}"


def fed_input(point: Point) -> str:
    """Name of the input that takes a point's place."""
    return f"feed.{point.name}"


def tapped_model(model: onnx.ModelProto, points: Sequence[Point]) -> onnx.ModelProto:
    """The graph whose outputs are the points."""
    made = _Graph(model)
    made.nodes.extend(model.graph.node)
    for point in points:
        made.tap(point, point.value)
    return made.finished()


def fed_model(model: onnx.ModelProto, points: Sequence[Point], *, dtype: int) -> onnx.ModelProto:
    """The graph in which every point but the last is computed, shown, and then replaced by an input.

    A norm fused with the addition before it computes point and norm in one node. A second such node, over what is fed
    and zeros, then norms for the consumers: the kernel stays the one that is examined.

    Args:
        model: the graph.
        points: in the order of the computation.
        dtype: ONNX element type of the activations.
    """
    made = _Graph(model)
    *inner, last = points
    streams = {point.value: point for point in inner if point.scaled}
    norms = {point.value: point for point in inner if not point.scaled}
    for point in inner:
        made.feed(fed_input(point), dtype)
    made.feed(ZEROS, dtype)
    # value -> what its consumers read instead
    instead: dict[str, str] = {}
    for original in model.graph.node:
        node = copy.deepcopy(original)
        node.input[:] = [instead.get(name, name) for name in node.input]
        made.nodes.append(node)
        for point in [streams[value] for value in node.output if value in streams]:
            made.tap(point, point.value)
            instead |= made.replace(node, point)
        for point in [norms[value] for value in node.output if value in norms]:
            made.tap(point, instead.get(point.value, point.value))
            instead[point.value] = fed_input(point)
    made.tap(last, last.value)
    return made.finished()


class _Graph:
    """A graph under construction, with the weights, functions and opsets of another."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        for part in ("node", "input", "output", "value_info"):
            self._model.graph.ClearField(part)
        self.nodes: list[onnx.NodeProto] = []
        self._casts: list[onnx.NodeProto] = []
        self._taps: list[onnx.NodeProto] = []
        for value in model.graph.input:
            self._input(value)

    def _input(self, value: onnx.ValueInfoProto) -> None:
        """As it was, but float32 where numpy or the caller would have to know the precision."""
        import onnx

        dtype = value.type.tensor_type.elem_type
        if dtype not in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            self._model.graph.input.append(value)
            return
        wide = copy.deepcopy(value)
        wide.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        wide.name = f"{value.name}.wide"
        self._model.graph.input.append(wide)
        self._casts.append(onnx.helper.make_node("Cast", [wide.name], [value.name], to=dtype))

    def feed(self, name: str, dtype: int) -> None:
        """Adds a float32 input [B, S, H] that nodes read in the activations' type."""
        import onnx

        wide = f"{name}.wide"
        shape = ["batch_size", "sequence_length", None]
        self._model.graph.input.append(onnx.helper.make_tensor_value_info(wide, onnx.TensorProto.FLOAT, shape))
        self._casts.append(onnx.helper.make_node("Cast", [wide], [name], to=dtype))

    def replace(self, node: onnx.NodeProto, point: Point) -> dict[str, str]:
        """What consumers of a node's outputs read once a point among them is fed."""
        if node.op_type != "SkipSimplifiedLayerNormalization":
            return {point.value: fed_input(point)}
        # the same addition and norm, over the fed stream and zeros
        again = copy.deepcopy(node)
        again.name = f"{node.name}.fed"
        again.input[:2] = [fed_input(point), ZEROS]
        again.output[:] = [f"{name}.fed" if name else "" for name in node.output]
        self.nodes.append(again)
        return {old: new for old, new in zip(node.output, again.output, strict=True) if old}

    def tap(self, point: Point, value: str) -> None:
        """Adds a float32 output that shows a value."""
        import onnx

        name = tap_output(point)
        self._taps.append(onnx.helper.make_node("Cast", [value], [name], to=onnx.TensorProto.FLOAT))
        self._model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))

    def finished(self) -> onnx.ModelProto:
        """The model."""
        self._model.graph.node.extend([*self._casts, *self.nodes, *self._taps])
        return self._model
