"""Second-order quantisation of a projection: the errors of rounded columns are made up for by the columns that follow.

The loss of a row is (w - q) H (w - q)^T with H = X^T X over the projection's inputs. With H = U D U^T, U upper
triangular of unit diagonal and D diagonal, it is the sum over j of D[j] * (w[j] + (w - q)[:j] U[:j, j] - q[j])^2:
column j rounds w[j] plus what the errors of the columns before it ask for. This is GPTQ without an inverse of H:
https://arxiv.org/abs/2210.17323; equal to LDLQ of https://arxiv.org/abs/2307.13304 (theorem 6).
"""

from __future__ import annotations

import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_codes import BlockCodes, pack, reciprocal, stored_scales
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.quantisers.search import search_scales

__all__ = ["Feedback", "Gram", "gptq"]

# Share of H's mean diagonal that is added to it. Mean KL on the built-in model, block 128 with zero points: 0.0193 for
# 0.001, 0.0200 for GPTQ's own 0.01, 0.0184 for 0.1; chosen on the first half of the held-out text, and the
# differences are small.
_DAMPING = 0.1
# Share of each diagonal element on top. Channels that one token makes huge are collinear to the last bit: this keeps
# the matrix positive definite whatever float32's rounding of the sums was.
_JITTER = 2.0**-12
# Factors on the range of blocks with zero points; the scale that loses least after feedback wins. Mean KL on the
# built-in model and on one of other sizes: 0.0159 and 0.00139; with those of `search` 0.0163 and 0.00137, down to 0.76
# 0.0158 and 0.00148. Rounding alone: 0.0327 and 0.00290.
_FACTORS = (1.0, 0.95, 0.9, 0.85)
# Columns whose errors reach the later ones of their block by one product; within them, column by column.
_STEP = 32
# Rows of the matrix of second moments that one product makes.
_STRIP = 1024


class Gram:
    """X^T X of a projection's inputs, accumulated in float32.

    Args:
        columns: input features.
    """

    def __init__(self, columns: int) -> None:
        # rows and columns in reverse order: U then is an ordinary Cholesky factor
        self._reversed = torch.zeros(columns, columns)

    def add(self, inputs: torch.Tensor) -> None:
        """Adds inputs [..., columns]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).flip(1)
        # the triangle that the factorisation reads: half the products
        for first in range(0, rows.shape[1], _STRIP):
            strip = self._reversed[first : first + _STRIP, first:]
            strip.addmm_(rows[:, first : first + _STRIP].t(), rows[:, first:])

    def feedback(self, name: str, damping: float = _DAMPING) -> Feedback:
        """Factorises in place: this object is used up.

        Args:
            name: of the matrix, for errors.
            damping: share of the mean of H's diagonal that is added to the diagonal.

        Raises:
            NonFiniteError: the inputs held NaN or infinity, or overflow float32 when squared.
        """
        gram, self._reversed = self._reversed, torch.empty(0)
        diagonal = gram.diagonal().clone()
        mean = diagonal.double().mean().item()
        if not diagonal.isfinite().all():
            raise _not_finite(name)
        if mean == 0:
            # nothing reaches this projection: plain rounding
            diagonal.fill_(1.0)
        gram.diagonal().copy_(diagonal * (1 + _JITTER) + damping * mean)
        # in Fortran's order, as LAPACK wants it: in place, half the memory
        lower, info = gram.mT, torch.empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(lower, out=(lower, info))
        if info.item():
            raise _not_finite(name)
        return Feedback(lower)


class Feedback:
    """The factor U of H = U D U^T, by columns.

    Args:
        lower: [columns, columns], Cholesky factor of H with rows and columns in reverse order.
    """

    def __init__(self, lower: torch.Tensor) -> None:
        self._lower = lower
        self.columns = len(lower)

    def before(self, first: int, last: int) -> torch.Tensor:
        """U[:last, first:last], [last, last - first]."""
        end = self.columns
        part = self._lower[end - last :, end - last : end - first].flip(0, 1)
        return part / part[first:].diagonal()

    def importance(self) -> torch.Tensor:
        """D, [columns]: what an error of each column costs once the later ones made up for it."""
        return self._lower.diagonal().flip(0).square()


def gptq(columns: torch.Tensor, feedback: Feedback, layout: BlockFormat, scale_dtype: torch.dtype) -> BlockCodes:
    """Codes of some rows of a matrix; a row's codes depend on that row alone.

    Args:
        columns: float32 [columns, rows], the rows transposed; overwritten with w - q.
        feedback: of the matrix's inputs.
        layout: bits, block size, symmetry.
        scale_dtype: of the scales.
    """
    count, rows = columns.shape
    blocks = layout.blocks(count)
    codes = torch.empty(blocks * layout.block_size, rows, dtype=torch.uint8)
    scales, zero_points = torch.empty(blocks, rows, dtype=scale_dtype), torch.empty(blocks, rows)
    importance = feedback.importance()
    for block in range(blocks):
        first = block * layout.block_size
        last = min(first + layout.block_size, count)
        factor = feedback.before(first, last)
        part = columns[first:last]
        wanted = torch.addmm(part, factor[:first].t(), columns[:first])
        found = search_scales(wanted.t().unsqueeze(1).contiguous(), layout, importance[first:last], asymmetric=_FACTORS)
        scales[block], zero_points[block] = stored_scales(found[0].flatten(), scale_dtype), found[1].flatten()
        scale, zero_point = scales[block].float(), zero_points[block]
        codes[first:last] = _round_block(part, wanted, factor[first:], scale, zero_point, layout.top)
        # padding reads back as zero
        codes[last : first + layout.block_size] = zero_point.to(torch.uint8)
    return BlockCodes(
        data=pack(codes.t().contiguous(), layout.bits).view(rows, blocks, -1),
        scales=scales.t().contiguous(),
        zero_points=None if layout.symmetric else pack(zero_points.t().to(torch.uint8).contiguous(), layout.bits),
    )


def _round_block(
    part: torch.Tensor,
    wanted: torch.Tensor,
    factor: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    top: int,
) -> torch.Tensor:
    """Rounds the columns of a block in order.

    Args:
        part: weights [columns, rows]; overwritten with their errors.
        wanted: the same, plus what the errors before this block ask for; overwritten.
        factor: U's square on the diagonal, [columns, columns].
        scale, zero_point: float32 [rows].
        top: the largest code.

    Returns:
        Codes, whole float32 numbers [columns, rows].
    """
    inverse = reciprocal(scale)
    codes = torch.empty_like(part)
    for start in range(0, len(part), _STEP):
        stop = min(start + _STEP, len(part))
        for column in range(start, stop):
            code, error = codes[column], part[column]
            value = torch.addmv(wanted[column], part[start:column].t(), factor[start:column, column])
            torch.mul(value, inverse, out=code).round_().add_(zero_point).clamp_(0, top)
            error.sub_((code - zero_point).mul_(scale))
        wanted[stop:].addmm_(factor[start:stop, stop:].t(), part[start:stop])
    return codes


def _not_finite(name: str) -> NonFiniteError:
    return NonFiniteError(
        f"inputs of {name}: their products do not fit float32 on the calibration text, expected finite numbers",
        hint="The checkpoint is damaged or its activations diverge: --quantizer search runs nothing.",
    )
