"""Moves channels' magnitudes between activations and the weights that multiply them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from gemma_export.channel_scales import ScaledColumns, ScaledGain, ScaledRows
from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import DOMAIN, refuse, weight_of
from gemma_export.weights import Weight, WeightTensor

__all__ = ["FoldChannelScales"]

_NAME = "FoldChannelScales"


class FoldChannelScales(ir.passes.InPlacePass):
    """Channels of projections' inputs scaled; the logits keep their value, with whole exponents every bit in float32.

    For x with channels j and exponents k: x[j] * 2^-k[j], and column j of every W that multiplies x times 2^k[j].

    x = RMSNorm(stream, w)                the gain 1 + w[j] times 2^-k[j]
    x = GeGLU(gate, up)                   row j of up's weight times 2^-k[j]
    x = Attention(query, key, value, ...) row j of value's weight; the query heads that share a value share exponents

    Args:
        exponents: name of a projection's weight -> k, one number for each of its columns. Of projections that read
            one x, one is named.

    Preconditions: semantic nodes with bound weights, before a target lowers them. Not idempotent: a second run would
    scale again.
    Source: https://arxiv.org/abs/2211.10438 (SmoothQuant), https://arxiv.org/abs/2306.00978 (AWQ).
    """

    def __init__(self, exponents: Mapping[str, Sequence[float]]) -> None:
        super().__init__()
        self.exponents = exponents

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Scales weights and gains; raises PassError where an activation has a producer or reader it does not know."""
        for name, exponents in self.exponents.items():
            value = model.graph.initializers.get(name)
            if value is None:
                raise PassError(
                    f"{_NAME}: the graph has no weight {name}",
                    hint="A pass ran out of order. Report this with --debug.",
                )
            ((node, _),) = value.uses()
            x = node.inputs[0]
            assert x is not None
            readers = _readers(x, node)
            _scale_producer(x, exponents)
            for reader in readers:
                _scale(reader, ScaledColumns, exponents)
        return ir.passes.PassResult(model, modified=bool(self.exponents))


def _readers(x: ir.Value, node: ir.Node) -> list[ir.Node]:
    """Every projection of x; nothing else may read it."""
    readers = []
    for reader, position in x.uses():
        if (reader.domain, reader.op_type, position) != (DOMAIN, "Linear", 0):
            raise refuse(reader, _NAME, f"it reads {x.name}, which {node.name} wants scaled")
        readers.append(reader)
    if x.is_graph_output():
        raise refuse(node, _NAME, f"its input {x.name} is an output of the graph")
    return readers


def _scale_producer(x: ir.Value, exponents: Sequence[float]) -> None:
    node, inverse = x.producer(), [-exponent for exponent in exponents]
    kind = node.op_type if node is not None and node.domain == DOMAIN and x is node.outputs[0] else None
    if node is not None and kind == "RMSNorm":
        _scale(node, ScaledGain, inverse)
    elif node is not None and kind == "GeGLU":
        _scale(_projection(node, 1), ScaledRows, inverse)
    elif node is not None and kind == "Attention":
        _scale(_projection(node, 2), ScaledRows, _by_value_head(node, inverse))
    else:
        name = node.name if node is not None else "an input of the graph"
        raise PassError(
            f"{_NAME}: {x.name} comes from {name}, expected a norm, a gated product or attention",
            hint="This architecture's channels cannot be scaled: export without calibration.",
        )


def _projection(node: ir.Node, position: int) -> ir.Node:
    value = node.inputs[position]
    projection = value.producer() if value is not None else None
    if value is None or projection is None or projection.op_type != "Linear" or len(value.uses()) != 1:
        raise refuse(node, _NAME, f"its input {position} is no projection of its own")
    return projection


def _by_value_head(node: ir.Node, exponents: Sequence[float]) -> list[float]:
    """One head's exponents for each value head, of those for each query head."""
    heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    size, group = len(exponents) // heads, heads // kv_heads
    by_head = [tuple(exponents[head * size : (head + 1) * size]) for head in range(heads)]
    if any(by_head[head] != by_head[head // group * group] for head in range(heads)):
        raise refuse(node, _NAME, "heads that share a value have different exponents")
    return [exponent for head in range(0, heads, group) for exponent in by_head[head]]


def _scale(node: ir.Node, scaled: Callable[[Weight, Sequence[float]], Weight], exponents: Sequence[float]) -> None:
    """Scales the weight of a projection or norm, which must be its own."""
    value = node.inputs[1]
    weight = weight_of(value, node, _NAME)
    assert value is not None
    if len(value.uses()) != 1:
        raise refuse(node, _NAME, f"its weight {value.name} is used elsewhere too")
    value.const_value = WeightTensor(scaled(weight, exponents), value.name)
