"""Gives the traced graph's initializers their lazy weights."""

from __future__ import annotations

import onnx_ir as ir
import torch

from gemma_export.adapter import Merge
from gemma_export.config import DecoderSpec
from gemma_export.errors import TracingError
from gemma_export.families import Family
from gemma_export.low_rank import LowRankSum
from gemma_export.nn import inverse_frequencies
from gemma_export.stored_codes import stored_weight
from gemma_export.tensors import TensorSource
from gemma_export.weights import Cast, RotaryTable, Stored, Transpose, Weight, WeightTensor

__all__ = ["bind_weights", "merged_weight", "model_weight"]


def bind_weights(
    model: ir.Model, family: Family, spec: DecoderSpec, source: TensorSource, merge: Merge | None = None
) -> None:
    """Binds every initializer to a lazy float32 expression over the checkpoint; nothing is read.

    Args:
        model: a traced graph, changed in place.
        family: its architecture.
        spec: its sizes; `max_position_embeddings` sizes the rotary tables.
        source: the checkpoint's tensors.
        merge: an adapter that was held against them.

    Raises:
        TracingError: the graph's parameters are not the family's tensors.
    """
    expressions: dict[str, Weight] = {}
    for suffix, rotary in spec.rotary_tables.items():
        frequencies = inverse_frequencies(head_dim=spec.head_dim, rotary=rotary)
        for function in ("cos", "sin"):
            name = f"{function}_cache{suffix}"
            expressions[name] = RotaryTable(frequencies, spec.max_position_embeddings, function, name)
    for name in family.tensor_shapes(spec):
        expressions[name] = model_weight(source, merge, name)
    initializers = model.graph.initializers
    if spec.tie_word_embeddings and "lm_head.weight" in initializers:
        # torch names a shared parameter after the module it meets first
        initializers["lm_head.weight"].name = "model.embed_tokens.weight"
    if set(initializers) != set(expressions):
        difference = ", ".join(sorted(set(initializers) ^ set(expressions))[:5])
        raise TracingError(
            f"the {family.name} graph's parameters differ from the family's tensors: {difference}",
            hint="tensor_shapes and build of the family file must agree; this is a bug of the family file.",
        )
    for name, value in initializers.items():
        value.const_value = WeightTensor(expressions[name], name)


def model_weight(source: TensorSource, merge: Merge | None, name: str) -> Weight:
    """One float32 tensor of the exported model, lazily: the checkpoint's, with an adapter merged if there is one."""
    return Cast(stored_weight(source, name) if merge is None else merged_weight(source, merge, name), torch.float32)


def merged_weight(source: TensorSource, merge: Merge, name: str) -> Weight:
    """One tensor of the model that an adapter was merged into, lazily."""
    merged = merge.tensors.get(name)
    if merged is None:
        return stored_weight(source, name)
    adapter = merge.adapter.source
    base = Stored(adapter, merged.base) if merged.from_adapter else stored_weight(source, merged.base)
    factors = merged.factors
    if factors is None:
        return base
    left, right = Stored(adapter, factors.b), Stored(adapter, factors.a)
    return LowRankSum(
        base,
        # an embedding's table is [vocabulary, hidden], and (B @ A).T is A.T @ B.T
        Transpose(Cast(right, torch.float32)) if factors.embedding else left,
        Transpose(Cast(left, torch.float32)) if factors.embedding else right,
        scale=factors.scale,
        norms=None if factors.magnitude is None else Stored(adapter, factors.magnitude),
        name=f"{name} with adapter {merge.adapter.name}",
    )
