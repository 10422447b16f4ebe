"""Token embedding times the embedding scale sqrt(hidden_size).

The scale is cast to the activations' dtype before it multiplies, as the reference does; a rounded literal drifts.
Source: https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaForCausalLM.forward, normalizer).
"""

from __future__ import annotations

import torch
from onnxscript import opset23 as op
from onnxscript import script

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing

__all__ = ["SCALED_EMBEDDING", "scaled_embedding"]


@script(OPSET, default_opset=op)
def ScaledEmbedding(input_ids, table, scale: float):  # type: ignore[no-untyped-def]
    rows = op.Gather(table, input_ids, axis=0)
    return op.Mul(rows, op.CastLike(op.Constant(value_float=scale), rows))


SCALED_EMBEDDING = SemanticOp(name="ScaledEmbedding", function=ScaledEmbedding)


def scaled_embedding(input_ids: torch.Tensor, table: torch.Tensor, *, scale: float) -> torch.Tensor:
    """table[input_ids] * scale.

    Args:
        input_ids: int64 [batch_size, sequence_length].
        table: [vocab_size, hidden_size].
        scale: sqrt(hidden_size) for every Gemma.

    Returns:
        [batch_size, sequence_length, hidden_size].
    """
    if is_tracing():
        return SCALED_EMBEDDING.node((input_ids, table), {"scale": scale}, (*input_ids.shape, table.shape[1]))
    return torch.nn.functional.embedding(input_ids, table) * torch.tensor(scale, dtype=table.dtype)
