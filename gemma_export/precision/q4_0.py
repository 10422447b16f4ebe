"""Whether a checkpoint was trained for Q4_0, by a look at some of its weights. Torch-free, so that plans can ask.

`quantisers.grid` finds the codes of such weights to the last bit while they are quantised. This only tells whether it
would, where other blocks are asked for: https://huggingface.co/google/gemma-3-1b-it-qat-q4_0-unquantized.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from gemma_export.precision.quantisers.grid import BLOCK, LARGEST_CODES
from gemma_export.precision.scheme import WeightScheme
from gemma_export.tensors import DTYPE_BYTES, TensorSource

__all__ = ["grid_warning", "lies_on_grid"]

# matrices that are looked at, and blocks of each: some kilobytes
_MATRICES, _BLOCKS = 4, 64
# Relative distance from the grid: bfloat16 rounds a weight by up to 2^-8 of it, and the largest one, which the grid is
# read off, by as much. Of 32 other weights hardly ever four are that near.
_TOLERANCE = 1.03 * 2.0**-7
# what Google calls such repositories: their weights are not read before they are downloaded
_NAME = "q4_0-unquantized"


def grid_warning(
    scheme: WeightScheme, source: TensorSource | None, tensors: Mapping[str, tuple[int, ...]], repository: str | None
) -> tuple[str, ...]:
    """A line where 4 bits are asked for in another layout than the one that the weights were trained for.

    Args:
        scheme: what is asked for.
        source: the weights; None while they are not here.
        tensors: names and shapes of the model's tensors.
        repository: of the Hub, by which weights are judged that are not here.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    if scheme.bits != 4 or scheme.checkpoint is not None:
        return ()
    needed = {
        "--block-size 32": scheme.block_size == BLOCK,
        "--symmetric": scheme.symmetric,
        "--quantizer search": scheme.quantiser == "search",
    }
    missing = [option for option, given in needed.items() if not given]
    if not missing and not scheme.activation_aware:
        return ()
    if source is None:
        found = repository is not None and _NAME in repository.lower()
    else:
        found = all(lies_on_grid(blocks) for blocks in _samples(source, tensors))
    if not found:
        return ()
    options = " ".join(["--int4", *missing])
    without = ", without --activation-aware," if scheme.activation_aware else ""
    return (
        f"these weights were trained for Q4_0 (4 bits, blocks of 32, symmetric): {options}{without} stores them "
        "exactly, what is asked for rounds them again",
    )


def lies_on_grid(blocks: npt.NDArray[np.float32]) -> bool:
    """Whether each block is whole numbers from -8 to 7 times a scale of its own, up to bfloat16's rounding.

    Numbers that are not finite, or too small to be divided, are on no grid.

    Args:
        blocks: [n, 32]; some must hold more than zeros.
    """
    low, high = blocks.min(1), blocks.max(1)
    largest = np.where(high >= -low, high, low)
    blocks, largest = blocks[largest != 0], largest[largest != 0]
    if not len(blocks):
        return False
    for code in LARGEST_CODES:
        # what is not finite is near to nothing
        with np.errstate(all="ignore"):
            scale = (largest / code)[:, None]
            codes = np.round(blocks / scale)
            near = np.abs(codes * scale - blocks) <= _TOLERANCE * np.abs(blocks)
        misses = ~(near & (codes >= -8) & (codes <= 7)).all(1)
        blocks, largest = blocks[misses], largest[misses]
    return not len(blocks)


def _samples(source: TensorSource, tensors: Mapping[str, tuple[int, ...]]) -> Iterator[npt.NDArray[np.float32]]:
    """The first blocks of some projections, from the first layer to the last."""
    names = [name for name, shape in tensors.items() if ".layers." in name and len(shape) == 2]
    for name in names[:: max(1, len(names) // _MATRICES)]:
        columns = tensors[name][1]
        count = min(math.prod(tensors[name]), _BLOCKS * BLOCK) if columns % BLOCK == 0 else 0
        yield _read(source, name, count).reshape(-1, BLOCK)


def _read(source: TensorSource, name: str, count: int) -> npt.NDArray[np.float32]:
    """A tensor's first numbers."""
    dtype = source.tensors[name].dtype
    buffer = bytearray(count * DTYPE_BYTES[dtype])
    source.read_into(name, 0, memoryview(buffer))
    if dtype == "bfloat16":
        # the upper half of a float32
        return (np.frombuffer(buffer, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(buffer, {"float32": "<f4", "float16": "<f2"}[dtype]).astype(np.float32)
