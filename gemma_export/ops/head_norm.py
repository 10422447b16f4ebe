"""RMSNorm of each head of a projection, before it is rotated: Gemma 3's QK-norm.

Source: https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaAttention.query_norm, key_norm).
"""

from __future__ import annotations

import torch
from onnxscript import FLOAT, script
from onnxscript import opset23 as op

from gemma_export.ops.rms_norm import rms_norm
from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing

__all__ = ["HEAD_NORM", "head_norm"]


@script(OPSET, default_opset=op)
def HeadNorm(x, weight, num_heads: int, epsilon: float = 1e-6):  # type: ignore[no-untyped-def]
    # 0 keeps a dimension as it is
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    x_f32 = op.Cast(op.Reshape(x, split), to=FLOAT.dtype)
    gain = op.Add(op.Cast(weight, to=FLOAT.dtype), op.Constant(value_float=1.0))
    normed = op.RMSNormalization(x_f32, gain, axis=-1, epsilon=epsilon, stash_type=1)
    return op.CastLike(op.Reshape(normed, op.Constant(value_ints=[0, 0, -1])), x)


HEAD_NORM = SemanticOp(name="HeadNorm", function=HeadNorm)


def head_norm(x: torch.Tensor, weight: torch.Tensor, *, num_heads: int, epsilon: float) -> torch.Tensor:
    """Normalises each head to unit mean square, then multiplies by 1 + weight.

    Args:
        x: [batch_size, sequence_length, num_heads * head_dim].
        weight: [head_dim], the checkpoint's w (not 1 + w); the same for all heads.
        num_heads: how many heads the last dimension holds.
        epsilon: added to the mean square.

    Returns:
        [batch_size, sequence_length, num_heads * head_dim], in x's dtype.
    """
    if is_tracing():
        # always written: onnx.inliner knows no defaults
        return HEAD_NORM.node((x, weight), {"num_heads": num_heads, "epsilon": epsilon}, x.shape)
    heads = x.reshape(*x.shape[:-1], num_heads, -1)
    return rms_norm(heads, weight, epsilon=epsilon).flatten(-2)
