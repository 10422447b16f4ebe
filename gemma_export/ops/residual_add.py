"""The residual stream: a branch's output added to it, at a point that has a name.

The names (`layers.3.attn_residual`) survive every pass: calibration and validation tap them.
"""

from __future__ import annotations

import torch
from onnxscript import opset23 as op
from onnxscript import script

from gemma_export.ops.semantic import OPSET, SemanticOp, is_tracing
from gemma_export.ops.taps import tap

__all__ = ["POINT", "RESIDUAL_ADD", "residual_add"]

# key of the node metadata that carries the point's name
POINT = "gemma.residual_point"


@script(OPSET, default_opset=op)
def ResidualAdd(stream, branch):  # type: ignore[no-untyped-def]
    return op.Add(stream, branch)


RESIDUAL_ADD = SemanticOp(name="ResidualAdd", function=ResidualAdd)


def residual_add(stream: torch.Tensor, branch: torch.Tensor, *, point: str) -> torch.Tensor:
    """stream + branch; the sum is called `point` in every graph.

    Args:
        stream, branch: [batch_size, sequence_length, hidden_size].
        point: fixed value name, for example "layers.3.attn_residual".

    Returns:
        [batch_size, sequence_length, hidden_size].
    """
    if is_tracing():
        return RESIDUAL_ADD.node((stream, branch), {}, stream.shape, {POINT: point})
    tap(f"{point}.branch", branch)
    total = stream + branch
    tap(point, total)
    return total
