"""A matrix some rows at a time, converted on threads, in order."""

from __future__ import annotations

import concurrent.futures
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from gemma_export.weights import Weight

__all__ = ["in_order", "row_pieces"]

_P = TypeVar("_P")
_T = TypeVar("_T")

# Threads that quantise while this one reads and widens; the result does not depend on their number.
_WORKERS = min(4, os.cpu_count() or 1)
# chunks read ahead of the one that is written: bounds the memory, keeps the threads busy
_AHEAD = 2 * _WORKERS
# Rows are handed over in pieces of about this many weights: a MiB in float32 amortises the calls and still fits a
# core's second-level cache. Measured on one core, rtn: 64 Ki 0.4, 128 Ki 0.7, 256 Ki 0.8 G weights/s.
_PIECE = 1 << 18


def in_order(pieces: Iterable[_P], convert: Callable[[_P], _T]) -> Iterator[_T]:
    """What `convert` makes of each piece, on several threads."""
    pending: deque[concurrent.futures.Future[_T]] = deque()
    with concurrent.futures.ThreadPoolExecutor(_WORKERS, "quantise", torch.set_num_threads, (1,)) as pool:
        for piece in pieces:
            pending.append(pool.submit(convert, piece))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def row_pieces(weight: Weight, size: int = _PIECE) -> Iterator[torch.Tensor]:
    """float32 rows of about `size` weights, in copies of their own: an expression reuses its buffers."""
    rows: list[torch.Tensor] = []
    filled = 0
    for chunk in weight.chunks():
        rows.append(chunk.float() if chunk.dtype != torch.float32 else chunk.clone())
        filled += chunk.numel()
        if filled >= size:
            yield torch.cat(rows)
            rows, filled = [], 0
    if rows:
        yield torch.cat(rows)
