"""The largest keys and values of every channel on calibration text, and the scales that cover them.

Calibration sequences are short, and rotary embedding turns the slow pairs of channels no further there than their
positions reach: what a channel holds later, in a long text, is not what it holds on them. So a pair of key channels is
covered by its radius, which no position changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gemma_export.calibration.runs import calibration_run
from gemma_export.config import CacheState
from gemma_export.layerwise import LayerStack, Tap
from gemma_export.precision.cache_format import CacheFormat
from gemma_export.progress import Progress
from gemma_export.weights import Weight

__all__ = ["cache_scales"]

# taps of gemma_export.ops.attention, in the order of a state's names
_KEY, _VALUE = _TAPS = ("attention.key", "attention.value")
# A channel that is (almost) zero on the text may not be on another: its range is this share of the layer's largest.
_SMALLEST_SHARE = 2.0**-10


def cache_scales(
    stack: LayerStack,
    states: Sequence[CacheState],
    weights: Callable[[str], Weight],
    sequences: Sequence[Sequence[int]],
    cache: CacheFormat,
    *,
    directory: Path,
    progress: Progress | None = None,
) -> Mapping[str, npt.NDArray[np.float32]]:
    """Past tensor -> float32 scales [1, num_heads, 1, head_dim], from one pass of the float32 reference.

    Args:
        stack: the architecture.
        states: its decoder state, layer by layer.
        weights: name -> lazy float32 weight.
        sequences: token ids of the calibration text, BOS first.
        cache: the integers.
        directory: for hidden states that do not fit in memory.
        progress: told of the weights' bytes.

    Memory: one layer in float32, hidden states.

    Raises:
        NonFiniteError: a weight or activation is not finite.
        ResourceExhaustedError: the disk is full.
    """
    peaks: dict[str, torch.Tensor] = {}

    def look(tap: Tap, values: torch.Tensor) -> None:
        if tap.layer is None or tap.name not in _TAPS:
            return
        name = states[tap.layer].past_names[_TAPS.index(tap.name)]
        # [batch_size, num_heads, sequence_length, head_dim]
        reach = _radius(values) if tap.name == _KEY else values.abs()
        found = reach.amax(dim=(0, 2), keepdim=True)
        peaks[name] = torch.maximum(peaks[name], found) if name in peaks else found

    label = "calibrating the cache"
    with calibration_run(stack, weights, sequences, directory=directory, progress=progress, label=label) as run:
        run.through(look)
    assert set(peaks) == {name for state in states for name in state.past_names}
    return {name: _scale(peak, cache) for name, peak in peaks.items()}


def _radius(keys: torch.Tensor) -> torch.Tensor:
    """Of each pair that rotary embedding turns, channels i and i + head_dim / 2, for both of them."""
    radius = torch.hypot(*keys.chunk(2, dim=-1))
    return torch.cat((radius, radius), dim=-1)


def _scale(peak: torch.Tensor, cache: CacheFormat) -> npt.NDArray[np.float32]:
    largest = peak.max()
    covered = torch.where(largest > 0, torch.maximum(peak, largest * _SMALLEST_SHARE), torch.ones_like(peak))
    scale: npt.NDArray[np.float32] = (covered * (cache.margin / cache.largest)).numpy()
    return scale
