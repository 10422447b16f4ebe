"""A bias-free projection, traced as one semantic node."""

from __future__ import annotations

import torch

from gemma_export import ops

__all__ = ["Projection"]


class Projection(torch.nn.Module):
    """x @ weight.T with weight [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        return ops.linear(x, self.weight)
