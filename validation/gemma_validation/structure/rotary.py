"""Rotary embedding: which layer reads which cosine and sine, and whether those are what config.json asks for.

Two ways to have them: tables with a row for each position, or frequencies from which a step computes its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_export.config import Rotary
from gemma_runtime.manifest import Graph
from gemma_validation.structure.facts import FolderFacts, attribute, float32_of, layer_of, producers_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["rotary_nodes", "rotary_tables"]

# (domain, operator) -> where the rotary tables come in: cosine, sine
_TABLES = {
    ("com.microsoft", "GroupQueryAttention"): (7, 8),
    ("com.microsoft", "RotaryEmbedding"): (2, 3),
    ("", "RotaryEmbedding"): (1, 2),
    ("gemma", "Attention"): (6, 7),
}
# the same: where a step's positions come in, and the value that holds them
_POSITIONS = {
    ("com.microsoft", "RotaryEmbedding"): (1, "rows.position_ids"),
    ("", "RotaryEmbedding"): (3, "attention.position_ids"),
}
_POSITION_IDS = frozenset(name for _, name in _POSITIONS.values())
# what passes positions on
_CARRIED = frozenset({"Cast", "Reshape", "Unsqueeze"})
# Half a unit in the last place of a number up to 1: what storing a cosine costs
_ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# rows of a table that are compared at once: in float64 a long context's would take hundreds of megabytes
_ROWS = 8192


def rotary_nodes(facts: FolderFacts) -> Iterator[str]:
    """Every layer reads the cosine as cosine and the sine as sine, those of its kind, in halves, with its heads."""
    spec = facts.spec
    for graph, model in facts.graphs:
        for node in model.graph:
            places = _TABLES.get((node.domain, node.op_type))
            if places is None or (node.op_type == "GroupQueryAttention" and not attribute(node, "do_rotary", 0)):
                continue
            found, expected = [_name(node, place) for place in places], _expected(node, facts)
            if found != expected:
                yield f"{graph.file}, {node.name}: its tables are {found}, expected {', '.join(expected)}"
            yield from (f"{graph.file}, {node.name}: {told}" for told in _positions(node, facts))
            if attribute(node, "interleaved", attribute(node, "rotary_interleaved", 0)) != 0:
                yield f"{graph.file}, {node.name}: interleaved, expected halves"
            heads = spec.num_key_value_heads if ".key_rotary" in str(node.name) else spec.num_attention_heads
            if (node.domain, node.op_type) == ("", "RotaryEmbedding") and attribute(node, "num_heads") != heads:
                yield f"{graph.file}, {node.name}: num_heads is {attribute(node, 'num_heads')}, expected {heads}"


def rotary_tables(facts: FolderFacts) -> Iterator[str]:
    """Tables hold cosine and sine of position / factor * rope_theta^(-2i / head_dim), or frequencies lead to them."""
    for suffix, rotary in facts.spec.rotary_tables.items():
        if _computes(facts):
            for graph, model in facts.graphs:
                yield from _computed(graph, model, suffix, rotary, facts.spec.head_dim)
        else:
            yield from _stored(facts, suffix, rotary)


def _positions(node: ir.Node, facts: FolderFacts) -> Iterator[str]:
    """Whether a node of its own looks up the step's positions, or the rows that were computed for them."""
    if (node.domain, node.op_type) not in _POSITIONS:
        return
    place, expected = _POSITIONS[(node.domain, node.op_type)]
    found = _name(node, place)
    wanted: str | None = expected
    if _computes(facts):
        # the standard operator takes rows as they are, the contrib operator their numbers
        wanted = None if node.domain == "" else _expected(node, facts)[0].replace(".cos", ".rows")
    if found != wanted:
        yield f"its positions are {found}, expected {wanted}"


def _computes(facts: FolderFacts) -> bool:
    """Whether steps compute their rows: never where the semantic operators are kept, which look them up."""
    _, model = facts.main
    return facts.spec.computes_rotary and not model.functions


def _expected(node: ir.Node, facts: FolderFacts) -> list[str]:
    """Names of the cosine and the sine that a layer reads."""
    spec, layer = facts.spec, layer_of(node.name)
    local = layer is not None and spec.windows[layer] > 0 and "_local" in spec.rotary_tables
    suffix = "_local" if local else ""
    if node.op_type == "RotaryEmbedding" and _computes(facts):
        return [f"rotary{suffix}.cos", f"rotary{suffix}.sin"]
    return [f"cos_cache{suffix}", f"sin_cache{suffix}"]


def _frequencies(rotary: Rotary, head_dim: int) -> npt.NDArray[np.float64]:
    half = head_dim // 2
    frequencies: npt.NDArray[np.float64] = rotary.theta ** (-np.arange(half, dtype=np.float64) / half) / rotary.factor
    return frequencies


def _error(rotary: Rotary) -> float:
    """Relative, of an angle in float32: that of theta^e, whose e is rounded, and five roundings around it."""
    return (abs(math.log(rotary.theta)) + 5) * 2.0**-24


def _asked(rotary: Rotary) -> str:
    return f"for rope_theta {rotary.theta:g}" + (f", factor {rotary.factor:g}" if rotary.factor != 1 else "")


def _stored(facts: FolderFacts, suffix: str, rotary: Rotary) -> Iterator[str]:
    graph, model = facts.main
    frequencies, length = _frequencies(rotary, facts.spec.head_dim), facts.manifest.context_length
    for name, function in ((f"cos_cache{suffix}", np.cos), (f"sin_cache{suffix}", np.sin)):
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            yield f"{graph.file}: no {name}"
            continue
        table, tensor = float32_of(value.const_value), value.const_value
        if table.shape != (length, len(frequencies)):
            yield f"{graph.file}, {name}: {table.shape}, expected {(length, len(frequencies))}"
            continue
        rounding = 2 * _ROUNDING.get({"FLOAT": "float32"}.get(tensor.dtype.name, tensor.dtype.name.lower()), 0.0)
        for first in range(0, len(table), _ROWS):
            angles = np.arange(first, min(first + _ROWS, len(table)))[:, None] * frequencies
            bound = rounding + angles * _error(rotary)
            # not of NaN either
            wrong = np.argwhere(~(np.abs(table[first : first + _ROWS] - function(angles)) <= bound))
            if len(wrong):
                position, index = first + int(wrong[0][0]), int(wrong[0][1])
                yield (
                    f"{graph.file}, {name}: {table[position, index]:.6g} at position {position}, frequency {index}, "
                    f"expected {function(position * frequencies[index]):.6g} {_asked(rotary)}"
                )
                break


def _computed(graph: Graph, model: ir.Model, suffix: str, rotary: Rotary, head_dim: int) -> Iterator[str]:
    producers = producers_of(model)
    angles = f"rotary{suffix}.angles"
    for function in ("Cos", "Sin"):
        name = f"rotary{suffix}.{function.lower()}"
        node = producers.get(name)
        # in another precision the float32 cosine is rounded once
        while node is not None and node.op_type == "Cast":
            node = producers.get(str(_name(node, 0)))
        found = None if node is None else (node.op_type, _name(node, 0))
        if found != (function, angles):
            yield f"{graph.file}, {name}: it is {found}, expected {function} of {angles}"
    yield from _angles(graph, model, producers.get(angles), suffix)
    value = model.graph.initializers.get(f"rotary.frequencies{suffix}")
    if value is None or value.const_value is None:
        yield f"{graph.file}: no rotary.frequencies{suffix}"
        return
    expected, stored = _frequencies(rotary, head_dim), float32_of(value.const_value)
    if value.const_value.dtype.name != "FLOAT" or stored.shape != expected.shape:
        what = f"{value.const_value.dtype.name.lower()} {list(stored.shape)}"
        yield f"{graph.file}, {value.name}: {what}, expected float {list(expected.shape)}"
        return
    wrong = np.argwhere(~(np.abs(stored - expected) <= expected * _error(rotary)))
    if len(wrong):
        index = int(wrong[0][0])
        yield (
            f"{graph.file}, {value.name}: {stored[index]:.6g} at frequency {index}, expected {expected[index]:.6g} "
            f"{_asked(rotary)}"
        )


def _angles(graph: Graph, model: ir.Model, node: ir.Node | None, suffix: str) -> Iterator[str]:
    """Positions, as float32, times the frequencies of the suffix: in fewer bits late positions would be one."""
    expected = f"rotary.frequencies{suffix}"
    names = [] if node is None else [str(value.name) for value in node.inputs if value is not None]
    if node is None or node.op_type != "Mul" or expected not in names:
        found = "missing" if node is None else f"{node.op_type} of {', '.join(names)}"
        yield f"{graph.file}, rotary{suffix}.angles: {found}, expected positions times {expected}"
        return
    (value,) = (value for value in node.inputs if value is not None and value.name != expected)
    producer = value.producer()
    if producer is None or producer.op_type != "Cast" or attribute(producer, "to") != 1:
        yield f"{graph.file}, {node.name}: positions are no float32 numbers"
    while value.name not in _POSITION_IDS:
        producer = value.producer()
        if producer is None or producer.op_type not in _CARRIED or producer.inputs[0] is None:
            yield f"{graph.file}, {node.name}: angles are of {value.name}, expected positions"
            return
        value = producer.inputs[0]


def _name(node: ir.Node, place: int) -> str | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    return None if value is None else str(value.name)
