"""A matrix some rows at a time, converted on threads, in order."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import torch

from gemma_export.weights import Stored, Weight

__all__ = ["converted_rows", "converted_stored_rows", "in_order", "row_pieces"]

_P = TypeVar("_P")
_T = TypeVar("_T")
# pieces that are done with
_Free: TypeAlias = "queue.SimpleQueue[torch.Tensor]"

# Threads that quantise while this one reads and widens; the result does not depend on their number.
_WORKERS = min(4, os.cpu_count() or 1)
# chunks read ahead of the one that is written: bounds the memory, keeps the threads busy
_AHEAD = 2 * _WORKERS
# Rows are handed over in pieces of about this many weights, 2 MiB in bfloat16: the kernels go through them in pieces
# that fit a cache, and threads that finish every other millisecond wait for Python's lock. Measured on two cores,
# search: 1 Mi 0.93 to 1.01, 2 Mi 0.86 to 1.04, 4 Mi 0.80 to 0.91 G weights/s.
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
    free: _Free = queue.SimpleQueue()
    return in_order(_pieces(weight, _PIECE, free), _freed(convert, free))


def converted_stored_rows(parts: Sequence[Stored], convert: Callable[[torch.Tensor], _T]) -> Iterator[_T]:
    """The same of tensors behind one another, in the type that they are stored in: `convert` widens them."""
    free: _Free = queue.SimpleQueue()
    return in_order(_stored_pieces(parts, free), _freed(convert, free))


def row_pieces(weight: Weight, size: int) -> Iterator[torch.Tensor]:
    """float32 rows of about `size` weights, in copies of their own: an expression reuses its buffers."""
    return _pieces(weight, size, queue.SimpleQueue())


def _freed(convert: Callable[[torch.Tensor], _T], free: _Free) -> Callable[[torch.Tensor], _T]:
    def convert_and_free(piece: torch.Tensor) -> _T:
        try:
            return convert(piece)
        finally:
            free.put(piece)

    return convert_and_free


def _pieces(weight: Weight, size: int, free: _Free) -> Iterator[torch.Tensor]:
    rows, columns = weight.shape
    step = _rows_of(size, rows, columns)
    row = filled = 0
    piece = _next_piece(free, step, columns, torch.float32)
    for chunk in weight.chunks():
        taken = 0
        while taken < len(chunk):
            count = min(len(chunk) - taken, len(piece) - filled)
            piece[filled : filled + count] = chunk[taken : taken + count]
            taken, filled = taken + count, filled + count
            if filled == len(piece):
                yield piece
                row, filled = row + filled, 0
                piece = _next_piece(free, min(step, rows - row), columns, torch.float32)


def _stored_pieces(parts: Sequence[Stored], free: _Free) -> Iterator[torch.Tensor]:
    for part in parts:
        rows, columns = part.shape
        step = _rows_of(_PIECE, rows, columns)
        for first in range(0, rows, step):
            piece = _next_piece(free, min(step, rows - first), columns, part.dtype)
            part.read_rows(first, piece)
            yield piece


def _rows_of(size: int, rows: int, columns: int) -> int:
    """How many rows have about so many weights."""
    return max(1, min(rows, -(-size // columns)))


def _next_piece(free: _Free, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """One that is done with, or a new one: touching fresh megabytes costs more than widening numbers into them."""
    with contextlib.suppress(queue.Empty):
        piece = free.get_nowait()
        if len(piece) >= rows and piece.dtype == dtype:
            return piece[:rows]
    return torch.empty(rows, columns, dtype=dtype)
