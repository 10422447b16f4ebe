"""RMSNorm as a module."""

from __future__ import annotations

import torch

from gemma_export import ops

__all__ = ["RMSNorm"]


class RMSNorm(torch.nn.Module):
    """RMSNorm whose parameter w means a gain of 1 + w."""

    def __init__(self, size: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(size), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return ops.rms_norm(x, self.weight, epsilon=self.epsilon)
