"""Soft-capping of the logits as transformers' models do it behind their heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["soft_capped"]


def soft_capped(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(logits / cap) in the logits' own type, step by step: in bfloat16 each of the three rounds.

    Source: https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma2/modeling_gemma2.py
    (Gemma2ForCausalLM.forward).

    Args:
        logits: of any shape.
        cap: 0 leaves them as they are.
    """
    return (logits / cap).tanh() * cap if cap else logits
