"""The gated feed-forward block."""

from __future__ import annotations

import torch

from gemma_export import ops
from gemma_export.nn.projection import Projection

__all__ = ["GatedMLP"]


class GatedMLP(torch.nn.Module):
    """down(gelu_tanh(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Projection(hidden_size, intermediate_size)
        self.up_proj = Projection(hidden_size, intermediate_size)
        self.down_proj = Projection(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch_size, sequence_length, hidden_size] -> the same."""
        return self.down_proj(ops.geglu(self.gate_proj(x), self.up_proj(x)))
