"""Attention: heads, scale, softcap and window of every layer, where its kernel, its mask or its parts have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_export.config import DecoderSpec
from gemma_validation.structure.attention_parts import parts_numbers
from gemma_validation.structure.facts import FolderFacts, attribute, layer_of, producers_of
from gemma_validation.structure.masks import mask_window

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["attention"]

_ATTENTION = frozenset({"Attention", "GroupQueryAttention"})
# input of the standard operator that says which positions a row sees
_MASK = 3


def attention(facts: FolderFacts) -> Iterator[str]:
    """Heads, scale, softcap and window of every layer."""
    every, by_parts = range(facts.spec.num_hidden_layers), facts.by_parts
    expected_layers = [layer for layer in every if layer not in by_parts]
    for graph, model in facts.graphs:
        producers = producers_of(model) if by_parts else {}
        for layer in by_parts:
            yield from parts_numbers(facts, graph.file, producers, layer)
        nodes = [node for node in model.graph if node.op_type in _ATTENTION]
        layers = [layer_of(node.name) for node in nodes]
        if layers != expected_layers:
            told = expected_layers if by_parts else f"0 to {every[-1]}"
            yield f"{graph.file}: attention of layers {layers}, expected {told}"
            continue
        for layer, node in zip(expected_layers, nodes, strict=True):
            for name, (found, expected) in _numbers(node, layer, facts.spec).items():
                if found != expected:
                    yield f"{graph.file}, {node.name}: {name} is {found}, expected {expected}"


def _numbers(node: ir.Node, layer: int, spec: DecoderSpec) -> dict[str, tuple[Any, Any]]:
    """What it is about -> what it is, and what it should be."""
    standard = (node.domain, node.op_type) == ("", "Attention")
    heads = "q_num_heads" if standard else "num_heads"
    # stored as float32
    scale = attribute(node, "scale")
    return {
        heads: (attribute(node, heads), spec.num_attention_heads),
        "kv_num_heads": (attribute(node, "kv_num_heads"), spec.num_key_value_heads),
        "scale": (None if scale is None else float(np.float32(scale)), float(np.float32(spec.attention_scale))),
        "softcap": (float(np.float32(attribute(node, "softcap", 0.0))), float(np.float32(spec.attention_softcap))),
        "window": (mask_window(_mask(node)) if standard else _window(node), spec.windows[layer]),
        # the mask says it to the standard operator
        "is_causal": (attribute(node, "is_causal", 0), 0) if standard else (attribute(node, "causal", 1), 1),
    }


def _window(node: ir.Node) -> int:
    """Of an operator that has it as an attribute: 0 where a token sees everything before it."""
    return max(0, int(attribute(node, "local_window_size", attribute(node, "window", 0))))


def _mask(node: ir.Node) -> ir.Value | None:
    return node.inputs[_MASK] if len(node.inputs) > _MASK else None
