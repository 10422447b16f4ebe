"""RMSNorm as a module, of the last dimension and of each head."""

from __future__ import annotations

import torch

from gemma_export import ops

__all__ = ["HeadNorm", "RMSNorm"]


class RMSNorm(torch.nn.Module):
    """RMSNorm whose parameter w means a gain of 1 + w."""

    def __init__(self, size: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(size), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return ops.rms_norm(x, self.weight, epsilon=self.epsilon)


class HeadNorm(torch.nn.Module):
    """RMSNorm of each head of a projection; the heads share one gain of 1 + w."""

    def __init__(self, head_dim: int, num_heads: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(head_dim), requires_grad=False)
        self.num_heads, self.epsilon = num_heads, epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch_size, sequence_length, num_heads * head_dim] -> the same."""
        return ops.head_norm(x, self.weight, num_heads=self.num_heads, epsilon=self.epsilon)
