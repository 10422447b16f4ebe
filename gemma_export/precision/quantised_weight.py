"""A matrix that is quantised while it is written."""

from __future__ import annotations

import concurrent.futures
import os
from collections import deque
from collections.abc import Iterator

import torch

from gemma_export.precision.block_codes import BlockCodes, require_finite_scales
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.quantisers import RowQuantiser
from gemma_export.weights import Weight

__all__ = ["QuantisedWeight"]

# Threads that quantise while this one reads and widens; the result does not depend on their number.
_WORKERS = min(4, os.cpu_count() or 1)
# chunks read ahead of the one that is written: bounds the memory, keeps the threads busy
_AHEAD = 2 * _WORKERS
# Rows are handed over in pieces of about this many weights: a MiB in float32 amortises the calls and still fits a
# core's second-level cache. Measured on one core, rtn: 64 Ki 0.4, 128 Ki 0.7, 256 Ki 0.8 G weights/s.
_PIECE = 1 << 18


class QuantisedWeight(BlockWeight):
    """A lazy float32 expression and what chooses its rows' codes; each source is read once.

    Args:
        weight: float32 [rows, columns], finite: its expression refuses NaN and infinity by tensor and position.
        name: of the stored tensor.
        layout: bits, block size, symmetry.
        scale_dtype: of the scales: the activations' type.
        quantise: rows -> their codes.
    """

    def __init__(
        self, weight: Weight, name: str, layout: BlockFormat, scale_dtype: torch.dtype, quantise: RowQuantiser
    ) -> None:
        super().__init__(name, weight.shape, layout, scale_dtype)
        self._weight, self._quantise = weight, quantise

    def codes(self) -> Iterator[BlockCodes]:
        """See BlockWeight; quantised on several threads."""
        row = 0
        pending: deque[tuple[int, concurrent.futures.Future[BlockCodes]]] = deque()
        with concurrent.futures.ThreadPoolExecutor(_WORKERS, "quantise", torch.set_num_threads, (1,)) as pool:
            for piece in self._pieces():
                pending.append((row, pool.submit(self._quantise, piece)))
                row += len(piece)
                if len(pending) > _AHEAD:
                    yield self._checked(*pending.popleft())
            while pending:
                yield self._checked(*pending.popleft())

    def _pieces(self) -> Iterator[torch.Tensor]:
        """Rows in copies of their own: an expression reuses its buffers."""
        rows: list[torch.Tensor] = []
        filled = 0
        for chunk in self._weight.chunks():
            rows.append(chunk.float() if chunk.dtype != torch.float32 else chunk.clone())
            filled += chunk.numel()
            if filled >= _PIECE:
                yield torch.cat(rows)
                rows, filled = [], 0
        if rows:
            yield torch.cat(rows)

    def _checked(self, row: int, future: concurrent.futures.Future[BlockCodes]) -> BlockCodes:
        codes = future.result()
        require_finite_scales(codes, self.name, row, self.layout)
        return codes
