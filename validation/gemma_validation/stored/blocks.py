"""Stored blocks of integers against the checkpoint's weights: a block that no rounding explains is named."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_runtime.manifest import Manifest
from gemma_validation.artifact import load_graph, residual_shift
from gemma_validation.errors import MismatchError
from gemma_validation.findings import NOT_FINITE, Check
from gemma_validation.stored.initializers import Initializers, has_post_norms
from gemma_validation.stored.matrices import StoredMatrix, stored_matrices
from gemma_validation.stored.sources import SourceMatrix, Sources

if TYPE_CHECKING:
    from gemma_export.weights import Weight

__all__ = ["BadBlock", "BlocksFound", "ShiftedMatrix", "blocks_check", "compare_blocks"]

# The most steps between a weight and what is stored for it, where a block's step is what its own range asks for.
# Measured on the built-in model: rounding moves a weight by half a step, and by one at the end of the range; a searched
# scale clips the largest weights by up to 1.9; gptq, which moves weights to make up for each other's errors, by 3.2.
# A block that is zeroed moves by 7.5 or more, one whose scale is doubled by 5.
_STEPS = 4.0
# where most of a matrix's blocks move far, as gptq may make them, so may each: times the 99th percentile
_OUTLIER = 3.0
# The most squared error of a block, relative to its squares, whatever its matrix does. Measured: at most 0.034 in
# 4 bits; a zeroed block has 1, a doubled one 0.8 or more.
_RELATIVE = 0.4
# The most that all of a matrix may lie to one side, in steps: zero points off by one move it by one. Measured on the
# built-in model with every quantiser: at most 0.003.
_SHIFT = 0.1
# bad blocks in a message
_NAMED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadBlock:
    """One block that is not the checkpoint's."""

    # of the checkpoint
    tensor: str
    row: int
    # within the stored row
    first_column: int
    last_column: int
    # largest distance of a weight from the checkpoint's, in steps of the block, and the most that passes
    steps: float
    bound: float
    # squared error over squares
    relative: float

    def __str__(self) -> str:
        where = f"{self.tensor}, row {self.row}, columns {self.first_column} to {self.last_column}"
        if self.steps > self.bound:
            return f"{where}: {self.steps:.3g} steps from its weights, expected at most {self.bound:.2g}"
        return f"{where}: squared error {self.relative:.2g} of its weights, expected at most {_RELATIVE:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftedMatrix:
    """A matrix whose stored numbers are all off to one side, as zero points off by one make them."""

    # of the checkpoint; the first of those that are stored together
    tensor: str
    # mean of what is stored less the checkpoint's weights, in steps
    steps: float

    def __str__(self) -> str:
        return f"{self.tensor} is off by {self.steps:+.2g} steps on average, expected at most {_SHIFT:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksFound:
    """What the comparison found."""

    matrices: int
    blocks: int
    # largest distance among the blocks that pass, in steps
    steps: float
    # worst first
    bad: tuple[BadBlock, ...]
    # worst first
    shifted: tuple[ShiftedMatrix, ...]

    @property
    def wrong(self) -> tuple[ShiftedMatrix | BadBlock, ...]:
        """All that is not the checkpoint's, worst first."""
        return (*self.shifted, *self.bad)


def compare_blocks(directory: Path, manifest: Manifest, weights: Callable[[str], Weight]) -> BlocksFound:
    """Holds every quantised matrix of a folder against the checkpoint's weights.

    Memory: of as many matrices as there are threads, four at most, a few rows and two numbers for each block; where
    codes lie across the rows, a byte for each code.

    Args:
        directory: an exported folder.
        manifest: of it.
        weights: name -> lazy float32 weight of the checkpoint that it was made from, adapter merged if it has one.

    Raises:
        MismatchError: a stored matrix is none of the checkpoint's, or of another shape.
        FolderUnreadableError: a graph or data file cannot be read.
        GemmaExportError: a weight cannot be read.
    """
    from gemma_export.precision.row_pieces import in_order

    entry = manifest.graph("main")
    model = load_graph(directory / entry.file)
    stored = {
        matrix.name: matrix for matrix in stored_matrices(model, Initializers(model, (directory / entry.file).parent))
    }
    options, state = manifest.precision.options, entry.state[0]
    sources = Sources(
        weights,
        stored,
        # behind a post-norm its gain has the factor
        shift=0 if has_post_norms(model) else residual_shift(manifest),
        calibrated=any(key in options for key in ("smoothing", "activation_aware")),
        kv_heads=int(state.shape[1]),
        head_dim=int(state.shape[3]),
    )
    found = list(in_order(stored.values(), functools.partial(_compare_matrix, sources)))
    return BlocksFound(
        matrices=len(stored),
        blocks=sum(one.blocks for one in found),
        steps=max((one.steps for one in found), default=0.0),
        bad=tuple(sorted((bad for one in found for bad in one.bad), key=lambda block: -block.steps)),
        shifted=tuple(sorted((bad for one in found for bad in one.shifted), key=lambda matrix: -abs(matrix.steps))),
    )


def blocks_check(found: BlocksFound) -> Check:
    """What was found, as a check of the folder; skipped where nothing is quantised."""
    if not found.matrices:
        message = "no weight is stored in blocks"
        return Check(group="structure", name="stored blocks", outcome="skipped", message=message)
    if not found.wrong:
        message = (
            f"{found.blocks} blocks of {found.matrices} matrices are the checkpoint's, within {found.steps:.1f} steps"
        )
    else:
        whole = f"{len(found.shifted)} of {found.matrices} matrices are" if found.shifted else ""
        single = f"{len(found.bad)} of {found.blocks} blocks are" if found.bad else ""
        what = " and ".join(filter(None, (whole, single)))
        message = f"{what} not the checkpoint's: {_named(found.wrong)}"
    return Check(
        group="structure",
        name="stored blocks",
        outcome="failed" if found.wrong else "passed",
        message=message,
        measured=max([found.steps, *(block.steps for block in found.bad)]),
        bound=_STEPS,
    )


def _named(bad: Sequence[ShiftedMatrix | BadBlock]) -> str:
    more = f"; {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return "; ".join(map(str, bad[:_NAMED])) + more


def _compare_matrix(sources: Sources, matrix: StoredMatrix) -> BlocksFound:
    source = _source(sources, matrix)
    distances = _distances(matrix, source)
    bound = max(_STEPS, _OUTLIER * float(np.quantile(distances.steps, 0.99)))
    wrong = (distances.steps > bound) | (distances.relative > _RELATIVE)
    off = not abs(distances.shift) <= _SHIFT
    return BlocksFound(
        matrices=1,
        blocks=distances.steps.size,
        steps=float(distances.steps[~wrong].max(initial=0.0)),
        bad=tuple(
            _bad_block(matrix, source, distances, row, block, bound) for row, block in np.argwhere(wrong).tolist()
        ),
        shifted=(ShiftedMatrix(tensor=source.row_name(0)[0], steps=distances.shift),) if off else (),
    )


def _source(sources: Sources, matrix: StoredMatrix) -> SourceMatrix:
    try:
        source = sources.matrix(matrix.name)
    except KeyError as error:
        raise MismatchError(
            f"the folder stores {matrix.name}, the checkpoint has no {error.args[0]}",
            hint="Give the checkpoint that this folder was exported from.",
        ) from error
    shape = (sum(rows for _, rows in source.parts), source.columns)
    # a table that is only looked up does not say how much of its last block is padding
    if shape[0] != matrix.rows or not 0 <= matrix.columns - shape[1] < matrix.block_size:
        raise MismatchError(
            f"the folder stores {matrix.name} as {[matrix.rows, matrix.columns]}, the checkpoint has {list(shape)}",
            hint="Give the checkpoint that this folder was exported from.",
        )
    return source


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Distances:
    """Of each block [rows, blocks] from the checkpoint's; infinite where a value is not finite."""

    # largest distance of a weight, in steps
    steps: npt.NDArray[np.float32]
    # squared error over squares
    relative: npt.NDArray[np.float32]
    # mean of stored less source over the matrix, in steps
    shift: float


def _distances(matrix: StoredMatrix, source: SourceMatrix) -> _Distances:
    read = matrix.open()
    count = -(-source.columns // matrix.block_size)
    steps, relative = (np.empty((matrix.rows, count), np.float32) for _ in range(2))
    shift = 0.0
    for first, piece in source.pieces():
        rows = slice(first, first + len(piece))
        blocks = _in_blocks(piece, matrix.block_size)
        step = _steps(matrix, blocks)
        squares = np.einsum("rbc,rbc->rb", blocks, blocks)
        with np.errstate(invalid="ignore", over="ignore"):
            moved = _in_blocks(read(rows.start, rows.stop)[:, : source.columns], matrix.block_size) - blocks
            shift += float((moved.sum(-1) / step).sum(dtype=np.float64))
            steps[rows] = np.maximum(moved.max(-1), -moved.min(-1)) / step
            relative[rows] = np.einsum("rbc,rbc->rb", moved, moved) / np.maximum(squares, np.square(step))
    return _Distances(
        steps=np.nan_to_num(steps, nan=np.inf),
        relative=np.nan_to_num(relative, nan=np.inf),
        shift=shift / (matrix.rows * source.columns),
    )


def _in_blocks(rows: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """[rows, columns] as [rows, blocks, size], the last block padded with zeros."""
    missing = -rows.shape[1] % size
    padded = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
    return padded.reshape(len(rows), -1, size)


def _steps(matrix: StoredMatrix, blocks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The step that each block's own range asks for, [rows, blocks]."""
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    top, middle = (1 << matrix.bits) - 1, 1 << (matrix.bits - 1)
    step: npt.NDArray[np.float32] = np.maximum(high, -low) / middle if matrix.symmetric else (high - low) / top
    # a block of zeros asks for none: what is small beside the others' steps is none
    floor = max(matrix.smallest_scale, 1e-3 * float(np.median(step)), float(np.finfo(np.float32).tiny))
    return np.maximum(step, np.float32(floor))


def _bad_block(
    matrix: StoredMatrix, source: SourceMatrix, distances: _Distances, row: int, block: int, bound: float
) -> BadBlock:
    tensor, own_row = source.row_name(row)
    first = block * matrix.block_size
    return BadBlock(
        tensor=tensor,
        row=own_row,
        first_column=first,
        last_column=min(first + matrix.block_size, source.columns) - 1,
        steps=min(float(distances.steps[row, block]), NOT_FINITE),
        bound=bound,
        relative=min(float(distances.relative[row, block]), NOT_FINITE),
    )
