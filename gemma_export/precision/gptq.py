"""Second-order quantisation of a projection: the errors of rounded columns are made up for by the columns that follow.

The loss of a row is (w - q) H (w - q)^T with H = X^T X over the projection's inputs. With H = U D U^T, U upper
triangular of unit diagonal and D diagonal, it is the sum over j of D[j] * (w[j] + (w - q)[:j] U[:j, j] - q[j])^2:
column j rounds w[j] plus what the errors of the columns before it ask for. This is GPTQ without an inverse of H:
https://arxiv.org/abs/2210.17323; equal to LDLQ of https://arxiv.org/abs/2307.13304 (theorem 6).

Matrices before this one are quantised already, so its inputs are X where the reference has Y. A row that gives what it
gives there, q X^T = w Y^T, is nearest to w + r H^-1 with r = w (Y - X)^T X, and column j rounds r U^-T D^-1 more.
Source: asymmetric calibration, https://arxiv.org/abs/2504.02692.
"""

from __future__ import annotations

import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_codes import BlockCodes, pack, reciprocal, stored_scales
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.quantisers.search import search_scales

__all__ = ["Asymmetry", "Feedback", "Gram", "gptq"]

# Share of H's mean diagonal that is added to it. Mean KL on the built-in model, feedback alone: 0.0193 for
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
# Rows of the matrix of second moments that are multiplied, and factorised, together.
_STRIP = 1024
# Share of r that rows take over, an estimate from some thousand tokens. Mean KL on the built-in model and on one of
# other sizes, on a text apart: 0.0209 and 0.00442 without, 0.0187 and 0.00355 for 1/4, 0.0176 and 0.00345 for 1/2,
# 0.0185 and 0.00349 for 1.
_SHARE = 0.5


class Gram:
    """X^T X of a projection's inputs, accumulated in float32: the triangle that is factorised, in strips of rows.

    Args:
        columns: input features.
    """

    def __init__(self, columns: int) -> None:
        # Rows and columns in reverse order: U then is an ordinary Cholesky factor. Each strip begins at its diagonal.
        starts = range(0, columns, _STRIP)
        self._strips = [torch.zeros(min(_STRIP, columns - first), columns - first) for first in starts]

    def add(self, inputs: torch.Tensor) -> None:
        """Adds inputs [..., columns]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).flip(1)
        for strip in self._strips:
            part = rows[:, -strip.shape[1] :]
            strip.addmm_(part[:, : len(strip)].t(), part)

    def feedback(self, name: str, damping: float = _DAMPING) -> Feedback:
        """Factorises in place: this object is used up.

        Args:
            name: of the matrix, for errors.
            damping: share of the mean of H's diagonal that is added to the diagonal.

        Raises:
            NonFiniteError: the inputs held NaN or infinity, or overflow float32 when squared.
        """
        strips, self._strips = self._strips, []
        diagonal = _diagonal(strips)
        mean = diagonal.double().mean().item()
        if not diagonal.isfinite().all():
            raise _not_finite(name)
        for strip in strips:
            if mean == 0:
                # nothing reaches this projection: plain rounding
                strip.diagonal().fill_(1.0)
            strip.diagonal().mul_(1 + _JITTER).add_(damping * mean)
        if not _factorise(strips):
            raise _not_finite(name)
        return Feedback(strips)


class Feedback:
    """The factor U of H = U D U^T, by columns.

    Args:
        strips: of R, rows of the upper triangle from the diagonal on, R^T R being H with rows and columns in reverse
            order.
    """

    def __init__(self, strips: list[torch.Tensor]) -> None:
        self._strips = strips
        self.columns = strips[0].shape[1]

    def before(self, first: int, last: int) -> torch.Tensor:
        """U[:last, first:last], [last, last - first]."""
        low, high = self.columns - last, self.columns - first
        rows = torch.zeros(last - first, last)
        for strip in self._strips:
            start = self.columns - strip.shape[1]
            top, bottom = max(low, start), min(high, start + len(strip))
            if top < bottom:
                rows[top - low : bottom - low, top - low :] = strip[top - start : bottom - start, top - start :]
        part = rows.flip(0, 1).t()
        return part / part[first:].diagonal()

    def importance(self) -> torch.Tensor:
        """D, [columns]: what an error of each column costs once the later ones made up for it."""
        return _diagonal(self._strips).flip(0).square()

    def pull(self, moments: torch.Tensor) -> torch.Tensor:
        """U^-1 r^T in units of D, [columns, rows]: what each column rounds more so that rows come to w + r H^-1.

        Args:
            moments: r, [rows, columns].
        """
        left = moments.flip(1).t().contiguous()
        for strip in self._strips:
            size, start = len(strip), self.columns - strip.shape[1]
            solved = left[start : start + size]
            solved.copy_(torch.linalg.solve_triangular(strip[:, :size].mT, solved, upper=False))
            left[start + size :].addmm_(strip[:, size:].t(), solved, alpha=-1)
        return left.div_(_diagonal(self._strips).unsqueeze(1)).flip(0)


class Asymmetry:
    """r = w (Y - X)^T X of a projection, [rows, columns], from sums in float32.

    Args:
        name: of the matrix, for errors.
        weight: float32 [rows, columns]; read until `moments` has been asked for its rows.
    """

    def __init__(self, name: str, weight: torch.Tensor) -> None:
        self._name, self._weight = name, weight
        rows, columns = weight.shape
        # the smaller product is summed up: of the outputs that are missing and X, or of Y - X and X
        self._outputs = rows <= columns
        self._sum = torch.zeros(min(rows, columns), columns)

    def add(self, expected: torch.Tensor, inputs: torch.Tensor) -> None:
        """Adds the reference's inputs and the quantised model's, [..., columns] each."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        missing = expected.reshape(rows.shape) - rows
        if self._outputs:
            missing = missing @ self._weight.t()
        self._sum.addmm_(missing.t(), rows)

    def moments(self, first: int, last: int) -> torch.Tensor:
        """The share of rows first to last that is made up for, [last - first, columns].

        Raises:
            NonFiniteError: the inputs or the weights held NaN or infinity, or their products overflow float32.
        """
        rows = self._sum[first:last] if self._outputs else self._weight[first:last] @ self._sum
        rows = rows * _SHARE
        if not torch.stack(torch.aminmax(rows)).isfinite().all():
            raise _not_finite(self._name)
        return rows


def gptq(
    columns: torch.Tensor,
    feedback: Feedback,
    layout: BlockFormat,
    scale_dtype: torch.dtype,
    pull: torch.Tensor | None = None,
) -> BlockCodes:
    """Codes of some rows of a matrix; a row's codes depend on that row alone.

    Args:
        columns: float32 [columns, rows], the rows transposed; overwritten with w - q.
        feedback: of the matrix's inputs.
        layout: bits, block size, symmetry.
        scale_dtype: of the scales.
        pull: what each column rounds more, float32 [columns, rows].
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
        if pull is not None:
            wanted += pull[first:last]
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


def _factorise(strips: list[torch.Tensor]) -> bool:
    """The Cholesky factor R of a matrix R^T R, in place of its upper triangle; whether it is positive definite."""
    for number, strip in enumerate(strips):
        size = len(strip)
        factor, info = torch.linalg.cholesky_ex(strip[:, :size], upper=True)
        if info.item():
            return False
        strip[:, :size] = factor
        strip[:, size:] = torch.linalg.solve_triangular(factor.mT, strip[:, size:], upper=False)
        for later in strips[number + 1 :]:
            part = strip[:, -later.shape[1] :]
            later.addmm_(part[:, : len(later)].t(), part, alpha=-1)
    return True


def _diagonal(strips: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([strip.diagonal() for strip in strips])


def _not_finite(name: str) -> NonFiniteError:
    return NonFiniteError(
        f"inputs of {name}: their products do not fit float32 on the calibration text, expected finite numbers",
        hint="The checkpoint is damaged or its activations diverge: --quantizer search runs nothing.",
    )
