"""A matrix some rows at a time, converted on threads, in order."""

from __future__ import annotations

import concurrent.futures
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from gemma_export.weights import Weight

__all__ = ["converted_rows", "in_order", "row_pieces"]

_P = TypeVar("_P")
_T = TypeVar("_T")

# Threads that quantise while this one reads and widens; the result does not depend on their number.
_WORKERS = min(4, os.cpu_count() or 1)
# chunks read ahead of the one that is written: bounds the memory, keeps the threads busy
_AHEAD = 2 * _WORKERS
# Rows are handed over in pieces of about this many weights, 4 MiB in float32: the kernels go through them in pieces
# that fit a cache, and threads that finish every other millisecond wait for Python's lock. Measured on two cores,
# search (rtn): 256 Ki 0.65 (0.75), 1 Mi 0.90 (1.8), 2 Mi 0.9 (1.9) G weights/s.
_PIECE = 1 << 20


def in_order(pieces: Iterable[_P], convert: Callable[[_P], _T]) -> Iterator[_T]:
    """What `convert` makes of each piece, on several threads."""
    pending: deque[concurrent.futures.Future[_T]] = deque()
    before = torch.get_num_threads()
    try:
        with concurrent.futures.ThreadPoolExecutor(_WORKERS, "quantise", torch.set_num_threads, (1,)) as pool:
            for piece in pieces:
                pending.append(pool.submit(convert, piece))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        # what a worker sets is the process's where nobody has asked before, and always MKL's
        torch.set_num_threads(before)


def converted_rows(weight: Weight, convert: Callable[[torch.Tensor], _T]) -> Iterator[_T]:
    """What `convert` makes of float32 rows of about a million weights, in order; it may not keep them."""
    free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()

    def convert_and_free(piece: torch.Tensor) -> _T:
        try:
            return convert(piece)
        finally:
            free.put(piece)

    return in_order(_pieces(weight, _PIECE, free), convert_and_free)


def row_pieces(weight: Weight, size: int) -> Iterator[torch.Tensor]:
    """float32 rows of about `size` weights, in copies of their own: an expression reuses its buffers."""
    return _pieces(weight, size, queue.SimpleQueue())


def _pieces(weight: Weight, size: int, free: queue.SimpleQueue[torch.Tensor]) -> Iterator[torch.Tensor]:
    rows, columns = weight.shape
    step = min(rows, max(1, -(-size // columns)))
    row = filled = 0
    piece = _next_piece(free, step, columns)
    for chunk in weight.chunks():
        taken = 0
        while taken < len(chunk):
            count = min(len(chunk) - taken, len(piece) - filled)
            piece[filled : filled + count] = chunk[taken : taken + count]
            taken, filled = taken + count, filled + count
            if filled == len(piece):
                yield piece
                row, filled = row + filled, 0
                piece = _next_piece(free, min(step, rows - row), columns)


def _next_piece(free: queue.SimpleQueue[torch.Tensor], rows: int, columns: int) -> torch.Tensor:
    """One that is done with, or a new one: touching fresh megabytes costs more than widening numbers into them."""
    try:
        return free.get_nowait()[:rows]
    except queue.Empty:
        return torch.empty(rows, columns)
