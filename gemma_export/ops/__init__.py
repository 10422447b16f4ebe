"""Semantic operators: one file each, holding the eager math, the traced node and the ONNX function body.

`SEMANTIC_OPS` is the registry: to add an operator, add a file and a line here.
"""

from __future__ import annotations

from gemma_export.ops.attention import ATTENTION, attention
from gemma_export.ops.geglu import GEGLU, geglu
from gemma_export.ops.head_norm import HEAD_NORM, head_norm
from gemma_export.ops.last_tokens import LAST_TOKENS, last_tokens
from gemma_export.ops.linear import LINEAR, linear
from gemma_export.ops.residual_add import RESIDUAL_ADD, residual_add
from gemma_export.ops.rms_norm import RMS_NORM, rms_norm
from gemma_export.ops.scaled_embedding import SCALED_EMBEDDING, scaled_embedding
from gemma_export.ops.semantic import DOMAIN, SemanticOp
from gemma_export.ops.soft_cap import SOFT_CAP, soft_cap

__all__ = [
    "DOMAIN",
    "SEMANTIC_OPS",
    "SemanticOp",
    "attention",
    "geglu",
    "head_norm",
    "last_tokens",
    "linear",
    "residual_add",
    "rms_norm",
    "scaled_embedding",
    "soft_cap",
]

SEMANTIC_OPS: dict[str, SemanticOp] = {
    op.name: op
    for op in (
        SCALED_EMBEDDING,
        RMS_NORM,
        LINEAR,
        HEAD_NORM,
        ATTENTION,
        GEGLU,
        RESIDUAL_ADD,
        LAST_TOKENS,
        SOFT_CAP,
    )
}
