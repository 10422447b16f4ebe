"""Which tokens of a row a window-sized cache holds.

That is GroupQueryAttention's contract with sliding_window_cache = 1: the most recent tokens in order from the
buffer's beginning on, how many of them by their number alone. Tokens go several at once, and only then, so between two
such steps the last tokens can be taken back by counting fewer.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention, Windowed KV
Cache).
"""

from __future__ import annotations

import dataclasses

__all__ = ["WindowLayout", "capacity_for"]

# Beyond the window, on the CPU: the more, the seldomer tokens go, guesses end early and what was taken back has to be
# read again. A share keeps that small beside the window.
_LEAST_SLACK, _WINDOW_PER_SLACK = 64, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """Of one layer's buffers."""

    # tokens that a token sees, itself included
    window: int
    # tokens that the buffers have room for, at least the window
    capacity: int

    def resident(self, tokens: int) -> int:
        """How many of a row's tokens are held, its last ones: L(T)."""
        return tokens - self._evictions(tokens) * self._stride

    def next_eviction(self, tokens: int) -> int:
        """The least number of tokens above `tokens` at which some go that were held at `tokens`."""
        return self.capacity + self._evictions(tokens) * self._stride + 1

    def goes_back(self, tokens: int, length: int) -> bool:
        """Whether counting `length` tokens over the buffers as `tokens` left them is exact."""
        return self._evictions(tokens) == self._evictions(length)

    @property
    def _stride(self) -> int:
        """Tokens that go at once: G."""
        return self.capacity - self.window + 1

    def _evictions(self, tokens: int) -> int:
        return max(0, -(-(tokens - self.capacity) // self._stride))


def capacity_for(window: int, device: str) -> int:
    """Tokens that a buffer for a window has room for; CUDA's kernel takes no other number than the window.

    Args:
        window: tokens.
        device: onnxruntime's device name.
    """
    return window + max(_LEAST_SLACK, window // _WINDOW_PER_SLACK) if device == "cpu" else window
