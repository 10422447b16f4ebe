"""Multiplies the residual stream by a power of two, exactly, so that it fits float16."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import DOMAIN, attributes_of, nodes_of, refuse, weight_of
from gemma_export.weights import Scale, WeightTensor

__all__ = ["RescaleResidual"]

_NAME = "RescaleResidual"
# key of the model's in-memory metadata (never written to a file): the shift that has been applied
_APPLIED = "gemma.residual_shift"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stream:
    """Everything that touches the residual stream, in graph order."""

    embedding: ir.Node
    # RMSNorm nodes
    readers: tuple[ir.Node, ...]
    # Linear nodes, or RMSNorm nodes behind them, whose output is added to the stream
    writers: tuple[ir.Node, ...]
    adds: tuple[ir.Node, ...]


class RescaleResidual(ir.passes.InPlacePass):
    """The residual stream times 2^-k; every output of the graph keeps its value, bit for bit.

    Before: stream = ScaledEmbedding(ids, table, scale) + Linear(., W) + ...   read by RMSNorm(stream, w, epsilon)
    After:  scale * 2^-k; W * 2^-k (a post-norm instead: gain_scale = 2^-k)    read with epsilon * 2^-2k

    RMSNorm divides the stream by sqrt(mean(stream^2) + epsilon). With both scaled, every intermediate result is the
    former one times a power of two: rounding never sees the difference, as long as nothing leaves the normal float32
    range. The table stays: a tied head reads it.

    Args:
        shift: k, at least 1.

    Preconditions: semantic nodes with bound weights, before a target lowers them; one ScaledEmbedding; the stream is
    read by norms alone and each branch that is added to it ends in a projection, or in a norm, of its own.
    Source: https://arxiv.org/abs/1910.07467 (RMSNorm, invariance to re-scaling).
    """

    def __init__(self, shift: int) -> None:
        super().__init__()
        if shift < 1:
            raise ValueError(f"shift must be at least 1, found {shift}")
        self.shift = shift

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rescales writers and readers; raises PassError for a use of the stream that it does not understand."""
        applied = model.meta.get(_APPLIED)
        if applied == self.shift:
            return ir.passes.PassResult(model, modified=False)
        if applied is not None:
            raise PassError(
                f"{_NAME}: the stream is scaled by 2^-{applied} already, expected an unscaled one",
                hint="A pass ran twice. Report this with --debug.",
            )
        stream = _follow(model)
        _check_counts(model, stream)
        factor = 2.0**-self.shift
        # all checks come before the first change
        attributes_of(stream.embedding, {"scale": None}, _NAME)
        epsilons = [_scaled_epsilon(node, factor) for node in stream.readers]
        for node in stream.writers:
            _check_own(node, node.inputs[1], "weight")
        _multiply(stream.embedding, "scale", factor)
        for node, epsilon in zip(stream.readers, epsilons, strict=True):
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
        for node in stream.writers:
            _scale_writer(node, factor)
        model.meta[_APPLIED] = self.shift
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """One writer for each sum, one norm for each sum and the embedding, and no sum outside the stream."""
        _check_counts(model, _follow(model))


def _check_counts(model: ir.Model, stream: _Stream) -> None:
    sums = len(nodes_of(model, "ResidualAdd"))
    for what, found, expected in (
        ("sums", len(stream.adds), sums),
        ("writers", len(stream.writers), sums),
        ("norms", len(stream.readers), sums + 1),
    ):
        if found != expected:
            raise PassError(
                f"{_NAME}: expected {expected} {what} on the residual stream, found {found}",
                hint="This architecture's stream is built in another way. Export with --residual-scale off.",
            )


def _follow(model: ir.Model) -> _Stream:
    embeddings = nodes_of(model, "ScaledEmbedding")
    if len(embeddings) != 1:
        raise PassError(
            f"{_NAME}: expected one ScaledEmbedding, found {len(embeddings)}",
            hint="A pass ran out of order. Report this with --debug.",
        )
    readers: list[ir.Node] = []
    writers: list[ir.Node] = []
    adds: list[ir.Node] = []
    values = [embeddings[0].outputs[0]]
    for value in values:
        if value.is_graph_output():
            raise refuse(embeddings[0], _NAME, f"{value.name} of its stream is an output of the graph")
        for node, position in value.uses():
            kind = (node.domain, node.op_type, position)
            if kind == (DOMAIN, "RMSNorm", 0):
                readers.append(node)
            elif kind == (DOMAIN, "ResidualAdd", 0):
                adds.append(node)
                writers.append(_writer(node))
                values.append(node.outputs[0])
            else:
                raise refuse(node, _NAME, f"it reads the residual stream {value.name} as input {position}")
    return _Stream(embedding=embeddings[0], readers=tuple(readers), writers=tuple(writers), adds=tuple(adds))


def _writer(add: ir.Node) -> ir.Node:
    """The node that makes what a sum adds."""
    branch = add.inputs[1]
    producer = branch.producer() if branch is not None else None
    if branch is None or producer is None:
        raise refuse(add, _NAME, f"its branch {branch.name if branch else None} is computed by no node")
    if producer.domain != DOMAIN or producer.op_type not in ("Linear", "RMSNorm"):
        raise refuse(producer, _NAME, "it writes to the residual stream and is neither a projection nor a norm")
    _check_own(producer, branch, "output")
    return producer


def _check_own(node: ir.Node, value: ir.Value | None, what: str) -> None:
    """Scaling a value that others use too would change them."""
    assert value is not None
    if len(value.uses()) != 1 or value.is_graph_output():
        raise refuse(node, _NAME, f"its {what} {value.name} is used elsewhere too")
    if what == "weight":
        weight_of(value, node, _NAME)


def _scaled_epsilon(node: ir.Node, factor: float) -> float:
    epsilon = attributes_of(node, {"epsilon": None, "gain_scale": 1.0}, _NAME)["epsilon"]
    scaled = np.float32(epsilon) * np.float32(factor) * np.float32(factor)
    if scaled < np.finfo(np.float32).smallest_normal:
        raise refuse(node, _NAME, f"its epsilon {epsilon:g} times {factor:g}^2 is no normal float32 number")
    return float(scaled)


def _scale_writer(node: ir.Node, factor: float) -> None:
    if node.op_type == "RMSNorm":
        _multiply(node, "gain_scale", factor)
        return
    value = node.inputs[1]
    assert value is not None
    value.const_value = WeightTensor(Scale(weight_of(value, node, _NAME), factor), value.name)


def _multiply(node: ir.Node, name: str, factor: float) -> None:
    attribute = node.attributes.get(name)
    node.attributes[name] = ir.AttrFloat32(name, (1.0 if attribute is None else attribute.as_float()) * factor)
