"""RMSNorm with gain 1 + w, computed in float32 whatever the activations are.

Source: https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (class RMSNorm, add_unit_offset).
"""

from __future__ import annotations

import torch
from onnxscript import FLOAT, script
from onnxscript import opset23 as op

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing

__all__ = ["RMS_NORM", "rms_norm"]


@script(OPSET, default_opset=op)
def RMSNorm(x, weight, epsilon: float = 1e-6, gain_scale: float = 1.0):  # type: ignore[no-untyped-def]
    x_f32 = op.Cast(x, to=FLOAT.dtype)
    # the gain is 1 + w, and the sum is taken in float32: in bfloat16 it is off by up to 0.39 % per channel
    one = op.Constant(value_float=1.0)
    gain = op.Mul(op.Add(op.Cast(weight, to=FLOAT.dtype), one), op.Constant(value_float=gain_scale))
    return op.CastLike(op.RMSNormalization(x_f32, gain, axis=-1, epsilon=epsilon, stash_type=1), x)


RMS_NORM = SemanticOp(name="RMSNorm", function=RMSNorm)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, epsilon: float, gain_scale: float = 1.0) -> torch.Tensor:
    """Normalises the last dimension to unit mean square, then multiplies by (1 + weight) * gain_scale.

    Args:
        x: [..., hidden_size].
        weight: [hidden_size], the checkpoint's w (not 1 + w).
        epsilon: added to the mean square.
        gain_scale: 1 in every architecture; the residual stream's rescaling sets it on norms that write to the stream.

    Returns:
        [..., hidden_size], in x's dtype.
    """
    if is_tracing():
        # always written: onnx.inliner knows no defaults
        return RMS_NORM.node((x, weight), {"epsilon": epsilon, "gain_scale": gain_scale}, x.shape)
    x_f32 = x.float()
    normed = x_f32 * torch.rsqrt(x_f32.pow(2).mean(-1, keepdim=True) + epsilon)
    return (normed * ((1.0 + weight.float()) * gain_scale)).to(x.dtype)
