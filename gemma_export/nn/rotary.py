"""Rotary tables, computed the way the reference computes its angles."""

from __future__ import annotations

import torch

__all__ = ["rotary_tables"]


def rotary_tables(*, positions: int, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of position * theta ** (-2 i / head_dim).

    The angles are float32 products, as in the reference: at position 8191 a float64 angle would differ from it by
    more than float32's rounding of the cosine.
    Source: https://arxiv.org/abs/2104.09864 and
    https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (precompute_freqs_cis).

    Returns:
        cos, sin: float32 [positions, head_dim / 2].
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inverse_frequencies = 1.0 / (theta**exponents)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inverse_frequencies)
    return angles.cos(), angles.sin()
