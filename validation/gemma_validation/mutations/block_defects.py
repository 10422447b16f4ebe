"""Defects of weights in blocks of 4 bits: int4's own drift must not hide them."""

from __future__ import annotations

import numpy as np

from gemma_validation.mutations.defect import Defect
from gemma_validation.mutations.mutant import Array, Mutant

__all__ = ["BLOCK_DEFECTS"]

_DOUBLED, _ZEROED, _ZERO_POINTS = 1, 2, 3
_LARGEST = 15


def _double_scale(mutant: Mutant) -> None:
    """Scales [N, blocks]: the largest, so that the block is no empty one."""
    name = f"model.layers.{_DOUBLED}.mlp.up_proj.weight.scales"
    scales = mutant.tensor(name)
    scales[_strongest(scales)] *= 2
    mutant.write(name, scales)


def _zero_block(mutant: Mutant) -> None:
    """Data [N, blocks, bytes]: all codes of a block become its zero point."""
    weight = f"model.layers.{_ZEROED}.mlp.down_proj.weight"
    data, codes = mutant.tensor(f"{weight}.data"), mutant.tensor(f"{weight}.zero_points")
    row, block = _strongest(mutant.tensor(f"{weight}.scales"))
    zero = _unpack(codes, data.shape[1])[row, block]
    data[row, block] = zero | zero << 4
    mutant.write(f"{weight}.data", data)


def _zero_points_off_by_one(mutant: Mutant) -> None:
    name = f"model.layers.{_ZERO_POINTS}.self_attn.o_proj.weight"
    packed = mutant.tensor(f"{name}.zero_points")
    # two in a byte, each kept inside its half
    low, high = packed & _LARGEST, packed >> 4
    mutant.write(f"{name}.zero_points", np.minimum(low + 1, _LARGEST) | np.minimum(high + 1, _LARGEST) << 4)


def _strongest(scales: Array) -> tuple[int, int]:
    row, block = np.unravel_index(int(np.abs(scales).argmax()), scales.shape)
    return int(row), int(block)


def _unpack(packed: Array, blocks: int) -> Array:
    """[N, ceil(blocks / 2)] bytes -> [N, blocks], the even ones in the low halves."""
    return np.stack([packed & _LARGEST, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :blocks]


BLOCK_DEFECTS = (
    Defect(
        name="one block's scale doubled",
        about="one block of one row of a projection counts twice",
        where="data",
        needs="q4",
        alter=_double_scale,
        caught_by=frozenset({"stored"}),
        layer=_DOUBLED,
    ),
    Defect(
        name="one block zeroed",
        about="one block of one row of a projection is zero",
        where="data",
        needs="q4",
        alter=_zero_block,
        caught_by=frozenset({"stored"}),
        layer=_ZEROED,
    ),
    Defect(
        name="zero points off by one",
        about="of every block of one projection",
        where="data",
        needs="q4",
        alter=_zero_points_off_by_one,
        caught_by=frozenset({"stored"}),
        layer=_ZERO_POINTS,
    ),
)
