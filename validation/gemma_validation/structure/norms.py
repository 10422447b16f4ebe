"""Norms: which there are, their epsilons, and what the rescaled residual stream changes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gemma_export.families import FAMILIES
from gemma_validation.structure.facts import FolderFacts, attribute, stem

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["epsilons", "reads_stream", "writes_stream"]

_NORMS = frozenset(
    {"HeadNorm", "RMSNorm", "RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
)
# the norms of one layer's query and key heads
_OF_HEADS = ("q_norm", "k_norm")


def epsilons(facts: FolderFacts) -> Iterator[str]:
    """Every norm of the architecture is there once and adds config.json's epsilon.

    Where the residual stream is scaled by 2^-k, those that read it add 2^-2k times that, and no other norm does.
    """
    spec = facts.spec
    shapes = FAMILIES[spec.family].tensor_shapes(spec)
    expected = sorted(name.removesuffix(".weight") for name in shapes if name.endswith("norm.weight"))
    for graph, model in facts.graphs:
        nodes = [node for node in model.graph if node.op_type in _NORMS]
        found = sorted(map(stem, nodes))
        if found != expected:
            missing, strange = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
            told = ", ".join([*(f"no {name}" for name in missing), *(f"{name} is strange" for name in strange)])
            yield f"{graph.file}: norms are not the architecture's: {told or 'one is there twice'}"
        for node in nodes:
            for problem in _problems(node, facts):
                yield f"{graph.file}, {node.name}: {problem}"


def reads_stream(module: str, *, post_norms: bool) -> bool:
    """Whether a norm, by its module, normalises the residual stream itself."""
    return module.rpartition(".")[2] not in _OF_HEADS and not writes_stream(module, post_norms=post_norms)


def writes_stream(module: str, *, post_norms: bool) -> bool:
    """Whether a norm, by its module, normalises what is added to the residual stream."""
    # Gemma 1 calls the norm before its MLP post_attention_layernorm
    behind = ("post_attention_layernorm", "post_feedforward_layernorm")
    return post_norms and module.rpartition(".")[2] in behind


def _problems(node: ir.Node, facts: FolderFacts) -> Iterator[str]:
    spec, module = facts.spec, stem(node)
    factor = np.float32(2.0**-facts.residual_shift)
    reads = reads_stream(module, post_norms=spec.post_norms)
    expected = float(np.float32(spec.rms_norm_eps) * (factor * factor if reads else np.float32(1)))
    found = attribute(node, "epsilon")
    # stored as float32: exact
    if found is None or float(np.float32(found)) != expected:
        yield f"epsilon is {found}, expected {expected}"
    if attribute(node, "axis", -1) != -1 or attribute(node, "stash_type", 1) != 1:
        yield "expected statistics of the last axis in float32"
    # of the semantic operator; kernels have it in their gains
    scale = float(factor) if writes_stream(module, post_norms=spec.post_norms) else 1.0
    if node.op_type == "RMSNorm" and attribute(node, "gain_scale", 1.0) != scale:
        yield f"gain_scale is {attribute(node, 'gain_scale')}, expected {scale}"
    if node.op_type == "HeadNorm":
        heads = spec.num_attention_heads if module.endswith("q_norm") else spec.num_key_value_heads
        if attribute(node, "num_heads") != heads:
            yield f"num_heads is {attribute(node, 'num_heads')}, expected {heads}"
