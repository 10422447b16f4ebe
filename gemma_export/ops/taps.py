"""Values inside operators that no module boundary shows: the residual stream's points, what attention computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["observing", "tap"]

_observer: ContextVar[Callable[[str, torch.Tensor], None] | None] = ContextVar("_observer", default=None)


def tap(name: str, tensor: torch.Tensor) -> None:
    """Shows a value of an eager run to the observer, if there is one.

    Names: the residual point of a sum (`layers.3.attn_residual`), `{point}.branch` for what is added to the stream
    there, `attention.key` (after rotary embedding) and `attention.value` [batch_size, kv_heads, sequence_length,
    head_dim] as they enter the cache, `attention.scores` for the scaled query-key products [batch_size, heads,
    sequence_length, total], before softcap and mask.
    """
    observer = _observer.get()
    if observer is not None:
        observer(name, tensor)


@contextmanager
def observing(observer: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Calls `observer(name, tensor)` for every tapped value of eager operators within the block, on this thread."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
