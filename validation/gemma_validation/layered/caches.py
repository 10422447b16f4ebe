"""Keys and values of a run that is made layer by layer: kept as they come, or there before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["LayerCache"]


class LayerCache:
    """What transformers' attention asks of a cache, for one sequence; layers with a window keep what is outside it.

    Args:
        past: each layer's keys and values, [1, heads, tokens, head_dim], keys rotated; all layers equally long.
    """

    def __init__(self, past: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()) -> None:
        self._past = tuple(past)
        self._layers = dict(enumerate(past))
        # tokens before the run; stays while layers grow one after the other
        self.length = past[0][0].shape[2] if past else 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes a layer's keys and values of the run; gives all of them. The name and arguments are transformers'.

        Once more for a layer takes their place: a layer whose result is no number runs again, to say where.
        """
        if self._past:
            before = self._past[layer_idx]
            key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        self._layers[layer_idx] = (key, value)
        return key, value

    def parts(self, tokens: int) -> tuple[torch.Tensor, ...]:
        """Key and value of layer 0, then of layer 1, ...: of the first `tokens`."""
        ordered = (self._layers[layer] for layer in sorted(self._layers))
        return tuple(part[:, :, :tokens] for pair in ordered for part in pair)
