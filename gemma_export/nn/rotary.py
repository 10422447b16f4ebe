"""Rotary tables, computed the way the reference computes its angles."""

from __future__ import annotations

import torch

from gemma_export.config import Rotary

__all__ = ["inverse_frequencies", "rotary_tables"]


def inverse_frequencies(*, head_dim: int, rotary: Rotary) -> torch.Tensor:
    """theta ** (-2 i / head_dim) / factor: the angle of one position.

    Source: https://arxiv.org/abs/2104.09864, https://arxiv.org/abs/2306.15595 (linear scaling) and
    https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (precompute_freqs_cis, rope_scaling_factor).

    Returns:
        float32 [head_dim / 2].
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    # both references divide the frequencies and leave the positions whole
    return 1.0 / (rotary.theta**exponents) / rotary.factor


def rotary_tables(*, positions: int, head_dim: int, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of position / factor * theta ** (-2 i / head_dim).

    The angles are float32 products, as in the reference: at position 8191 a float64 angle would differ from it by
    more than float32's rounding of the cosine.

    Returns:
        cos, sin: float32 [positions, head_dim / 2].
    """
    frequencies = inverse_frequencies(head_dim=head_dim, rotary=rotary)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()
