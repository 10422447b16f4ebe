"""The compiled search against the same search in plain numpy, block by block."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import pytest

from gemma_export.precision.block_search import search_blocks

Floats = npt.NDArray[np.float32]
_FACTORS = {True: (1.12, 1.0, 0.9, 0.8), False: (1.0, 0.97, 0.94, 0.91)}
_MIDDLE, _TOP = np.float32(8), np.float32(15)


def _searched(blocks: Floats, symmetric: bool, importance: Floats | None = None) -> tuple[Floats, Floats]:
    scales, zero_points = np.empty((2, len(blocks)), np.float32)
    factors = np.array(_FACTORS[symmetric], np.float32)
    search_blocks(blocks, importance, factors, _MIDDLE, _TOP, symmetric, scales, zero_points)
    return scales, zero_points


def _blocks(count: int, size: int, seed: int = 0) -> Floats:
    found = np.random.default_rng(seed).standard_normal((count, size)) ** 3
    return found.astype(np.float32)


def _error(block: Floats, scale: float, zero_point: float, importance: Floats) -> float:
    codes = np.clip(np.round(block / np.float32(scale)), -zero_point, 15 - zero_point)
    return float((importance * np.square(block.astype(np.float64) - scale * codes)).sum())


def _least_error(block: Floats, symmetric: bool, importance: Floats) -> float:
    """Of the candidates whose scales are refitted to their codes."""
    low, high = min(float(block.min()), 0.0), max(float(block.max()), 0.0)
    errors = []
    for factor in _FACTORS[symmetric]:
        if symmetric:
            scale, zero_point = (high if high >= -low else low) * factor / -8, 8.0
        else:
            scale = (high - low) * factor / 15
            zero_point = float(np.clip(np.round(-low * factor / scale), 0, 15))
        codes = np.clip(np.round(block / np.float32(scale)), -zero_point, 15 - zero_point).astype(np.float64)
        scale = float((importance * codes * block).sum() / (importance * codes * codes).sum())
        errors.append(float((importance * np.square(block - scale * codes)).sum()))
    return min(errors)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [8, 32, 40, 128, 256])
def test_no_candidate_is_better_than_the_one_that_is_found(size: int, weighted: bool, symmetric: bool) -> None:
    blocks = _blocks(50, size)
    importance = np.random.default_rng(1).uniform(0.1, 9, size).astype(np.float32)
    counted = importance if weighted else np.ones(size, np.float32)
    scales, zero_points = _searched(blocks, symmetric, importance if weighted else None)
    for block, scale, zero_point in zip(blocks, scales.tolist(), zero_points.tolist(), strict=True):
        # rounding once more to the refitted scale can only win
        assert _error(block, scale, zero_point, counted) <= _least_error(block, symmetric, counted) * (1 + 1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_block_that_holds_no_number_gets_no_scale_and_its_neighbours_theirs(wrong: float, symmetric: bool) -> None:
    blocks = _blocks(4, 32)
    expected = _searched(blocks, symmetric)
    blocks[2, 17] = wrong
    scales, zero_points = _searched(blocks, symmetric)
    assert np.isnan(scales[2])
    assert zero_points[2] == 0
    others = [0, 1, 3]
    assert np.array_equal(scales[others], expected[0][others])
    assert np.array_equal(zero_points[others], expected[1][others])


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_block_of_zeros_has_a_scale_of_zero(symmetric: bool) -> None:
    scales, _ = _searched(np.zeros((3, 32), np.float32), symmetric)
    assert not scales.any()


def test_the_first_of_equal_candidates_is_taken() -> None:
    # a single number that is its own scale, whichever factor
    blocks = np.zeros((1, 16), np.float32)
    blocks[0, 0] = -15
    scales, zero_points = _searched(blocks, symmetric=False)
    assert (scales[0], zero_points[0]) == (1.0, 15.0)


def test_memory_that_is_not_contiguous_float32_is_refused() -> None:
    with pytest.raises(numba.TypingError, match="contiguous"):
        _searched(_blocks(8, 64)[:, ::2], symmetric=True)
    with pytest.raises(numba.TypingError, match="float32"):
        _searched(_blocks(8, 64).astype(np.float64), symmetric=True)  # type: ignore[arg-type]
