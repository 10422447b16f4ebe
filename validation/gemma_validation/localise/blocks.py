"""Stored blocks of integers against the checkpoint's weights: a block that no rounding explains is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_runtime.manifest import Manifest
from gemma_validation.errors import MismatchError
from gemma_validation.findings import Check
from gemma_validation.layered import checkpoint_weights, open_reference
from gemma_validation.localise.graphs import load_graph
from gemma_validation.localise.initializers import Initializers
from gemma_validation.localise.measure import NOT_FINITE, residual_shift
from gemma_validation.localise.sources import SourceMatrix, Sources
from gemma_validation.localise.stored import StoredMatrix, stored_matrices

if TYPE_CHECKING:
    from gemma_export.weights import Weight

__all__ = ["BadBlock", "BlocksFound", "compare_blocks", "find_blocks"]

# The most steps between a weight and what is stored for it; a block's step is what its own range asks for. Rounding
# moves a weight by half a step, a searched scale clips the largest by up to two, and a block that is zeroed, or whose
# scale is doubled, moves it by half its codes or more: 7.5 steps in 4 bits, 127 in 8.
_STEPS = 4.0
# gptq moves weights further, to make up for each other's errors: up to 3.2 steps on the built-in model. Where a
# matrix's blocks move far, so may each of them, up to a bound that a block gone wrong is still beyond.
_OUTLIER, _MOST_STEPS = 3.0, 6.0
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

    def __str__(self) -> str:
        where = f"{self.tensor}, row {self.row}, columns {self.first_column} to {self.last_column}"
        return f"{where}: {self.steps:.3g} steps from its weights, expected at most {self.bound:.2g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksFound:
    """What the comparison found."""

    matrices: int
    blocks: int
    # largest distance among the blocks that pass, in steps
    steps: float
    # worst first
    bad: tuple[BadBlock, ...]


def compare_blocks(directory: Path, manifest: Manifest, checkpoint: Path) -> tuple[Check, ...]:
    """Holds every quantised matrix of a folder against the checkpoint that it was made from.

    Args:
        directory: an exported folder.
        manifest: of it.
        checkpoint: folder of the checkpoint.

    Returns:
        One check; skipped where nothing is quantised.

    Raises:
        MismatchError: a stored matrix is none of the checkpoint's, or of another shape.
        FolderUnreadableError: a graph or data file cannot be read.
        GemmaExportError: the checkpoint cannot be used.
    """
    found = find_blocks(directory, manifest, checkpoint_weights(open_reference(checkpoint)))
    if not found.matrices:
        return (
            Check(group="structure", name="stored blocks", outcome="skipped", message="no weight is stored in blocks"),
        )
    worst = max([found.steps, *(block.steps for block in found.bad)])
    if not found.bad:
        message = (
            f"{found.blocks} blocks of {found.matrices} matrices are the checkpoint's, within {found.steps:.1f} steps"
        )
    else:
        named = "; ".join(map(str, found.bad[:_NAMED]))
        more = f"; {len(found.bad) - _NAMED} more" if len(found.bad) > _NAMED else ""
        message = f"{len(found.bad)} of {found.blocks} blocks are not the checkpoint's: {named}{more}"
    return (
        Check(
            group="structure",
            name="stored blocks",
            outcome="failed" if found.bad else "passed",
            message=message,
            measured=worst,
            bound=_STEPS,
        ),
    )


def find_blocks(directory: Path, manifest: Manifest, weights: Callable[[str], Weight]) -> BlocksFound:
    """The same with weights from anywhere.

    Memory: a few rows of a matrix; where codes lie across the rows, one matrix with a byte for each code.

    Args:
        directory, manifest: see `compare_blocks`.
        weights: name -> lazy weight of the checkpoint, with an adapter merged if the export has one.

    Raises:
        See `compare_blocks`.
    """
    entry = manifest.graph("main")
    model = load_graph(directory / entry.file)
    stored = {
        matrix.name: matrix for matrix in stored_matrices(model, Initializers(model, (directory / entry.file).parent))
    }
    options, state = manifest.precision.options, entry.state[0]
    sources = Sources(
        weights,
        stored,
        shift=residual_shift(manifest),
        calibrated=any(key in options for key in ("smoothing", "activation_aware")),
        kv_heads=int(state.shape[1]),
        head_dim=int(state.shape[3]),
    )
    blocks, steps = 0, 0.0
    bad: list[BadBlock] = []
    for matrix in stored.values():
        distances = _distances(matrix, _source(sources, matrix))
        blocks += distances.size
        bound = float(np.clip(_OUTLIER * np.quantile(distances, 0.99), _STEPS, _MOST_STEPS))
        steps = max(steps, float(distances[distances <= bound].max(initial=0.0)))
        bad += [
            _bad_block(matrix, sources, int(row), int(block), steps=float(distances[row, block]), bound=bound)
            for row, block in np.argwhere(~(distances <= bound))
        ]
    bad.sort(key=lambda block: -block.steps)
    return BlocksFound(matrices=len(stored), blocks=blocks, steps=steps, bad=tuple(bad))


def _source(sources: Sources, matrix: StoredMatrix) -> SourceMatrix:
    try:
        source = sources.matrix(matrix.name)
    except KeyError as error:
        raise MismatchError(
            f"the folder stores {matrix.name}, the checkpoint has no {error.args[0]}",
            hint="Give the checkpoint that this folder was exported from.",
        ) from error
    rows = sum(rows for _, rows in source.parts)
    if rows != matrix.rows:
        raise MismatchError(
            f"the folder stores {matrix.rows} rows of {matrix.name}, the checkpoint has {rows}",
            hint="Give the checkpoint that this folder was exported from.",
        )
    return source


def _distances(matrix: StoredMatrix, source: SourceMatrix) -> npt.NDArray[np.float32]:
    """[rows, blocks]: the largest distance of each block's weights from the source, in steps; infinite for NaN."""
    read = matrix.open()
    starts = np.arange(0, matrix.columns, matrix.block_size)
    found = np.empty((matrix.rows, len(starts)), np.float32)
    top, middle = float((1 << matrix.bits) - 1), float(1 << (matrix.bits - 1))
    for first, piece in source.pieces():
        values = read(first, first + len(piece))[:, : piece.shape[1]]
        low = np.minimum(np.minimum.reduceat(piece, starts, axis=1), 0)
        high = np.maximum(np.maximum.reduceat(piece, starts, axis=1), 0)
        step = np.maximum(high, -low) / middle if matrix.symmetric else (high - low) / top
        # a block of zeros has no step of its own: what is small beside the others is none
        floor = max(matrix.smallest_scale, 1e-3 * float(np.median(step)), float(np.finfo(np.float32).tiny))
        with np.errstate(invalid="ignore", over="ignore"):
            moved = np.maximum.reduceat(np.abs(values - piece), starts, axis=1) / np.maximum(step, floor)
        found[first : first + len(piece)] = np.nan_to_num(moved, nan=np.inf, posinf=np.inf)
    return found


def _bad_block(matrix: StoredMatrix, sources: Sources, row: int, block: int, *, steps: float, bound: float) -> BadBlock:
    tensor, own_row = sources.matrix(matrix.name).row_name(row)
    first = block * matrix.block_size
    return BadBlock(
        tensor=tensor,
        row=own_row,
        first_column=first,
        last_column=min(first + matrix.block_size, matrix.columns) - 1,
        steps=min(steps, NOT_FINITE),
        bound=bound,
    )
