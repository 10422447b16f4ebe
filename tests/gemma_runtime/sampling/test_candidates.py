"""Top-k and top-p found from parts of a vocabulary, against sorting all of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gemma_runtime.sampling.candidates import largest, nucleus

KINDS = ["random", "few levels", "equal", "ascending", "one high"]


def numbers(kind: str, size: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(size)
    found = {
        "random": random.normal(size=size),
        "few levels": random.integers(0, 5, size),
        "equal": np.zeros(size),
        "ascending": np.arange(size) / size,
        "one high": np.eye(1, size, size // 2)[0] * 50,
    }[kind]
    return found.astype(np.float32)


def sorted_places(values: npt.NDArray[np.floating]) -> list[int]:
    return sorted(range(len(values)), key=lambda place: (-values[place], place))


# below and above the sizes of blocks, and no multiple of them
@pytest.mark.parametrize("size", [1, 5, 128, 300, 5000, 20_011])
@pytest.mark.parametrize("kind", KINDS)
def test_largest(kind: str, size: int) -> None:
    values = numbers(kind, size)
    order = sorted_places(values)
    for k in (1, 2, 17, 64, 77, 78, 79, 300, 6000, size - 1, size, size + 1):
        if k >= 1:
            assert largest(values, k).tolist() == sorted(order[:k])
    assert largest(np.array([-np.inf, 1, -np.inf], np.float32), 2).tolist() == [0, 1]


@pytest.mark.parametrize("size", [1, 5, 4096, 5000, 20_011])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 0.01, 6.0])
def test_nucleus(kind: str, size: int, scale: float) -> None:
    values = numbers(kind, size) * np.float32(scale)
    weights = np.exp(values - values.max())
    order = sorted_places(weights)
    sums = weights[order].cumsum(dtype=np.float64)
    for p in (1e-9, 0.1, 0.5, 0.9, 0.99, 0.999999):
        share = p * weights.sum(dtype=np.float64)
        found = nucleus(weights, p).tolist()
        # sums in another order differ in the last digits: at an edge by one token
        if np.abs(sums - share).min() > 1e-9 * share:
            assert found == sorted(order[: int((sums >= share).argmax()) + 1])
        else:
            assert weights[found].sum(dtype=np.float64) >= share * (1 - 1e-9)
