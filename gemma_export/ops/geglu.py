"""GeGLU: tanh-approximated GELU of the gate, times the up projection.

Source: https://arxiv.org/abs/2002.05202 and
https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaMLP, approximate="tanh").
"""

from __future__ import annotations

import torch
from onnxscript import opset23 as op
from onnxscript import script

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing

__all__ = ["GEGLU", "geglu"]


@script(OPSET, default_opset=op)
def GeGLU(gate, up):  # type: ignore[no-untyped-def]
    return op.Mul(op.Gelu(gate, approximate="tanh"), up)


GEGLU = SemanticOp(name="GeGLU", function=GeGLU)


def geglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gelu_tanh(gate) * up.

    Args:
        gate, up: [batch_size, sequence_length, intermediate_size].

    Returns:
        [batch_size, sequence_length, intermediate_size].
    """
    if is_tracing():
        return GEGLU.node((gate, up), {}, gate.shape)
    return torch.nn.functional.gelu(gate, approximate="tanh") * up
