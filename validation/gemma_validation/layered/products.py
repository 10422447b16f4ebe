"""bfloat16 matrix products on any CPU: summed in float32 and rounded once, as torch's own are.

Processors without bfloat16 instructions run torch's at a quarter of float32's speed (18 instead of 60 to 78 GFLOP/s for
100 to 300 rows on two cores with AVX2), and how they sum would depend on the machine.
"""

from __future__ import annotations

import functools

import torch

__all__ = ["linear", "widen_linears"]

# of weights in float32 at a time
_PIECE_BYTES = 64 << 20


def linear(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """states @ weight^T in their type.

    Args:
        states: [..., in_features].
        weight: [out_features, in_features].

    Returns:
        [..., out_features].
    """
    if states.dtype != torch.bfloat16:
        return torch.nn.functional.linear(states, weight)
    result = states.new_empty(*states.shape[:-1], len(weight))
    wide = states.float()
    step = max(1, _PIECE_BYTES // (4 * weight.shape[1]))
    for first in range(0, len(weight), step):
        rows = weight[first : first + step]
        result[..., first : first + len(rows)] = torch.nn.functional.linear(wide, rows.float())
    return result


def widen_linears(module: torch.nn.Module) -> torch.nn.Module:
    """Makes every torch.nn.Linear without bias inside compute by `linear`; returns the module."""
    for part in module.modules():
        if isinstance(part, torch.nn.Linear) and getattr(part, "bias", None) is None:
            part.forward = functools.partial(_forward, part)  # type: ignore[method-assign]
    return module


def _forward(module: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
    return linear(states, module.weight)
