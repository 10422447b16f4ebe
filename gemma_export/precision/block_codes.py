"""Codes, scales and zero points of rows: rounding, packing, and back.

The rule, in float32 with one rounding each step, for every quantiser: the scale is rounded to its stored type; its
reciprocal r is taken; code = clamp(round(w * r) + zero point, 0, 2^bits - 1), ties to even. A weight reads back as
(code - zero point) * scale.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_format import SMALLEST_SCALE, BlockFormat
from gemma_export.precision.block_kernels import round_blocks, round_scales
from gemma_export.precision.block_pass import quantise_blocks

__all__ = [
    "BlockCodes",
    "blocks_of",
    "compiled_pass",
    "dequantise",
    "encode",
    "encode_rows",
    "pack",
    "reciprocal",
    "require_finite_scales",
    "stored_scales",
    "unpack",
]

# numbers that are quantised at a time: 8 KiB in float32, a multiple of every block size
_STRIP = 2048
# what float32 has more of
_DROPPED_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCodes:
    """Rows of a block-quantised matrix, as they are stored."""

    # uint8 [rows, blocks, bytes of a block]
    data: torch.Tensor
    # [rows, blocks], in the activations' type
    scales: torch.Tensor
    # uint8 [rows, bytes], None where symmetric
    zero_points: torch.Tensor | None


def blocks_of(rows: torch.Tensor, layout: BlockFormat) -> torch.Tensor:
    """[rows, columns] as [rows, blocks, block size], the last block padded with zeros."""
    missing = -rows.shape[1] % layout.block_size
    if missing:
        rows = torch.nn.functional.pad(rows, (0, missing))
    return rows.view(len(rows), -1, layout.block_size)


def stored_scales(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 scales as the nearest that `dtype` stores; a float16 subnormal is rounded away from zero.

    To the nearest, a scale under 2^-25 would become zero and its block with it, and one of few bits would lose more
    than the codes do. Rounded up, the codes take care: the error stays below what float16 weights have there.
    """
    found = torch.empty_like(scales, memory_format=torch.contiguous_format)
    round_scales(scales.contiguous().view(-1).numpy(), _DROPPED_BITS[dtype], found.view(-1).numpy())
    return found.to(dtype)


def reciprocal(scales: torch.Tensor) -> torch.Tensor:
    """1 / scale in float32; 0 for scales that count as 0."""
    return torch.where(scales.abs() < SMALLEST_SCALE, 0.0, 1 / scales)


def encode(blocks: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, layout: BlockFormat) -> BlockCodes:
    """Rounds and packs.

    Args:
        blocks: float32 [rows, blocks, block size].
        scales: [rows, blocks, 1], in the type they are stored in.
        zero_points: float32 [rows, blocks, 1], whole numbers; the layout's middle where it is symmetric.
        layout: bits and symmetry.
    """
    rows, count, size = blocks.shape
    nibbles = layout.bits == 4
    data = torch.empty(rows, count, size // 2 if nibbles else size, dtype=torch.uint8)
    round_blocks(
        blocks.contiguous().view(-1, size).numpy(),
        scales.float().reshape(-1).numpy(),
        zero_points.reshape(-1).numpy(),
        np.float32(layout.top),
        nibbles,
        data.view(rows * count, -1).numpy(),
    )
    return BlockCodes(
        data=data,
        scales=scales.squeeze(-1),
        zero_points=None if layout.symmetric else pack(_narrow(zero_points.squeeze(-1)), layout.bits),
    )


def encode_rows(
    rows: torch.Tensor, layout: BlockFormat, scale_dtype: torch.dtype, factors: tuple[float, ...] | None = None
) -> BlockCodes:
    """Chooses scales and zero points, rounds and packs, in one pass.

    Args:
        rows: float32 or bfloat16 [rows, columns]; what is not finite gets a scale that is not.
        layout: of the codes.
        scale_dtype: that scales are stored in.
        factors: of the search's candidates (`quantisers.search`); None where a block's range alone decides.
    """
    run, codes = compiled_pass(rows, layout, scale_dtype, factors)
    run()
    return codes()


def compiled_pass(
    rows: torch.Tensor, layout: BlockFormat, scale_dtype: torch.dtype, factors: tuple[float, ...] | None
) -> tuple[Callable[[], None], Callable[[], BlockCodes]]:
    """The pass of `encode_rows` by itself, which may be run again, and what it has found."""
    blocks = blocks_of(rows, layout).contiguous().view(-1)
    narrow = rows.dtype == torch.bfloat16
    strip = np.empty((_STRIP // layout.block_size, layout.block_size), np.float32)
    data = torch.empty(layout.data_shape(rows.shape), dtype=torch.uint8)
    scales, zero_points = (torch.empty(len(rows), data.shape[1]) for _ in range(2))
    run = functools.partial(
        quantise_blocks,
        blocks.view(torch.uint16 if narrow else torch.uint32).numpy(),
        np.uint32(16 if narrow else 0),
        strip,
        strip.reshape(-1).view(np.uint32),
        None if factors is None else np.array(factors, np.float32),
        np.float32(layout.middle),
        np.float32(layout.top),
        layout.symmetric,
        _DROPPED_BITS[scale_dtype],
        scales.view(-1).numpy(),
        zero_points.view(-1).numpy(),
        data.view(-1, data.shape[2]).numpy(),
    )

    def codes() -> BlockCodes:
        return BlockCodes(
            data=data,
            scales=scales.to(scale_dtype),
            zero_points=None if layout.symmetric else pack(_narrow(zero_points), layout.bits),
        )

    return run, codes


def require_finite_scales(codes: BlockCodes, name: str, first_row: int, layout: BlockFormat) -> None:
    """Refuses scales that their type does not hold.

    Args:
        codes: of some rows.
        name: of the tensor.
        first_row: of these rows in it.
        layout: for the block's columns.

    Raises:
        NonFiniteError: a scale is infinite or NaN.
    """
    if codes.scales.isfinite().all():
        return
    row, block = (~codes.scales.isfinite()).nonzero()[0].tolist()
    raise NonFiniteError(
        f"tensor {name}, row {first_row + row}, columns from {block * layout.block_size}: the block's scale "
        f"does not fit {str(codes.scales.dtype).removeprefix('torch.')}",
        hint="Export with float32 activations: this checkpoint's weights exceed the range of the scales.",
    )


def dequantise(codes: BlockCodes, layout: BlockFormat) -> torch.Tensor:
    """float32 [rows, blocks * block size]: what a kernel multiplies with, padding included."""
    data = unpack(codes.data, layout.bits).float()
    if codes.zero_points is None:
        zero_points = torch.full((*data.shape[:2], 1), float(layout.middle))
    else:
        zero_points = unpack(codes.zero_points, layout.bits)[:, : data.shape[1], None].float()
    return ((data - zero_points) * codes.scales.float().unsqueeze(-1)).flatten(1)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes [rows, n] as uint8 [rows, ceil(n * bits / 8)], low nibble first."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    # numpy's conversion is vectorised: 12 G/s where torch's does 1.8
    pairs = codes.contiguous().numpy().view("<u2")
    return torch.from_numpy((pairs | (pairs >> 4)).astype(np.uint8))


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes [..., n] of packed bytes, low nibble first; n is even below 8 bits."""
    if bits == 8:
        return packed
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _narrow(codes: torch.Tensor) -> torch.Tensor:
    """Whole float32 numbers from 0 to 255 as uint8."""
    return torch.from_numpy(codes.numpy().astype(np.uint8))
