"""A matrix that is quantised some rows at a time, on threads, in order."""

from __future__ import annotations

import concurrent.futures
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from gemma_export.weights import Weight

__all__ = ["quantised_pieces", "row_pieces"]

_T = TypeVar("_T")

# Threads that quantise while this one reads and widens; the result does not depend on their number.
_WORKERS = min(4, os.cpu_count() or 1)
# chunks read ahead of the one that is written: bounds the memory, keeps the threads busy
_AHEAD = 2 * _WORKERS
# Rows are handed over in pieces of about this many weights: a MiB in float32 amortises the calls and still fits a
# core's second-level cache. Measured on one core, rtn: 64 Ki 0.4, 128 Ki 0.7, 256 Ki 0.8 G weights/s.
_PIECE = 1 << 18


def quantised_pieces(weight: Weight, quantise: Callable[[torch.Tensor], _T]) -> Iterator[tuple[int, _T]]:
    """First row of each piece, and what `quantise` makes of its float32 rows [rows, columns].

    Args:
        weight: a matrix.
        quantise: called on several threads.
    """
    row = 0
    pending: deque[tuple[int, concurrent.futures.Future[_T]]] = deque()
    with concurrent.futures.ThreadPoolExecutor(_WORKERS, "quantise", torch.set_num_threads, (1,)) as pool:
        for piece in row_pieces(weight, _PIECE):
            pending.append((row, pool.submit(quantise, piece)))
            row += len(piece)
            if len(pending) > _AHEAD:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()


def row_pieces(weight: Weight, size: int) -> Iterator[torch.Tensor]:
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
