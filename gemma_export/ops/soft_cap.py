"""Soft-capping: cap * tanh(x / cap), which bends logits into (-cap, cap).

Source: https://arxiv.org/abs/2408.00118 (section 2, logit soft-capping) and
https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (final_logit_softcapping).
"""

from __future__ import annotations

import torch
from onnxscript import opset23 as op
from onnxscript import script

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing

__all__ = ["SOFT_CAP", "soft_cap"]


@script(OPSET, default_opset=op)
def SoftCap(x, cap: float):  # type: ignore[no-untyped-def]
    limit = op.CastLike(op.Constant(value_float=cap), x)
    return op.Mul(op.Tanh(op.Div(x, limit)), limit)


SOFT_CAP = SemanticOp(name="SoftCap", function=SoftCap)


def soft_cap(x: torch.Tensor, *, cap: float) -> torch.Tensor:
    """cap * tanh(x / cap).

    Args:
        x: any shape.
        cap: above 0.

    Returns:
        x's shape and dtype.
    """
    if is_tracing():
        return SOFT_CAP.node((x,), {"cap": cap}, x.shape)
    return torch.tanh(x / cap) * cap
