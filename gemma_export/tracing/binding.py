"""Gives the traced graph's initializers their lazy weights."""

from __future__ import annotations

import onnx_ir as ir
import torch

from gemma_export.config import DecoderSpec
from gemma_export.errors import TracingError
from gemma_export.families import Family
from gemma_export.nn import rotary_tables
from gemma_export.tensors import TensorSource
from gemma_export.weights import Cast, Constant, Stored, Weight, WeightTensor

__all__ = ["bind_weights"]


def bind_weights(model: ir.Model, family: Family, spec: DecoderSpec, source: TensorSource) -> None:
    """Binds every initializer to a lazy float32 expression over the checkpoint; nothing is read.

    Args:
        model: a traced graph, changed in place.
        family: its architecture.
        spec: its sizes; `max_position_embeddings` sizes the rotary tables.
        source: the checkpoint's tensors.

    Raises:
        TracingError: the graph's parameters are not the family's tensors.
    """
    cos, sin = rotary_tables(positions=spec.max_position_embeddings, head_dim=spec.head_dim, theta=spec.rope_theta)
    expressions: dict[str, Weight] = {"cos_cache": Constant(cos, "cos_cache"), "sin_cache": Constant(sin, "sin_cache")}
    for name in family.tensor_shapes(spec):
        expressions[name] = Cast(Stored(source, name), torch.float32)
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
