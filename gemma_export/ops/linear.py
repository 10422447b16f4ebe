"""A projection without bias whose weight keeps the checkpoint's layout.

One node instead of Transpose and MatMul: precisions choose the stored layout (transposed, block-quantised),
not the trace.
"""

from __future__ import annotations

import torch
from onnxscript import opset23 as op
from onnxscript import script

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing

__all__ = ["LINEAR", "linear"]


@script(OPSET, default_opset=op)
def Linear(x, weight):  # type: ignore[no-untyped-def]
    return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))


LINEAR = SemanticOp(name="Linear", function=Linear)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features], as torch.nn.Linear stores it.

    Returns:
        [..., out_features].
    """
    if is_tracing():
        return LINEAR.node((x, weight), {}, (*x.shape[:-1], weight.shape[0]))
    return torch.nn.functional.linear(x, weight)
