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

from gemma_export.precision.block_codes import BlockCodes, pack, reciprocal, stored_scales
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.quantisers.search import search_scales
from gemma_export.precision.second_moments import Feedback

__all__ = ["gptq"]

# Factors on the range of blocks with zero points; the scale that loses least after feedback wins. Mean KL on the
# built-in model and on one of other sizes: 0.0159 and 0.00139; with those of `search` 0.0163 and 0.00137, down to 0.76
# 0.0158 and 0.00148. Rounding alone: 0.0327 and 0.00290.
_FACTORS = (1.0, 0.95, 0.9, 0.85)
# Columns whose errors reach the later ones of their block by one product; within them, column by column.
_STEP = 32


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
