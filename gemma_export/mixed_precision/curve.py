"""In which order bytes buy most, and how far to go along that order. Torch-free arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from gemma_export.mixed_precision.candidates import Choice, Matrix

__all__ = ["Step", "interpolated", "search", "steps"]

# Measurements between the two ends, each a whole run, and the share of the bytes that another one must promise.
_MOST_RUNS = 8
_WORTH = 0.005


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One matrix gets more bytes."""

    matrix: str
    choice: Choice
    # of the matrix, beyond what it had
    extra_bytes: int
    # what the matrix alone is estimated to cost less, nats
    saves: float


def steps(matrices: Sequence[Matrix], costs: Mapping[str, Sequence[float]]) -> tuple[Step, ...]:
    """Every step from the scheme's own way to the most bytes, the most KL saved a byte first.

    Costs of different matrices add up to first order, so this is a knapsack; along each matrix's lower convex hull of
    cost over bytes the greedy order is the optimum for every total it passes through.
    """
    found: list[Step] = []
    for matrix in matrices:
        hull = _hull(matrix, costs[matrix.name])
        for before, after in itertools.pairwise(hull):
            choice = matrix.choices[after]
            extra = choice.nbytes - matrix.choices[before].nbytes
            saves = costs[matrix.name][before] - costs[matrix.name][after]
            found.append(Step(matrix=matrix.name, choice=choice, extra_bytes=extra, saves=max(saves, 0.0)))
    return tuple(sorted(found, key=lambda step: (-step.saves / step.extra_bytes, step.matrix, step.choice.nbytes)))


def _hull(matrix: Matrix, costs: Sequence[float]) -> list[int]:
    """Choices on the lower convex hull, from the first to the last."""
    hull: list[int] = []
    for index, choice in enumerate(matrix.choices):
        while len(hull) > 1 and _slope(matrix, costs, hull[-2], hull[-1]) >= _slope(matrix, costs, hull[-1], index):
            hull.pop()
        assert not hull or choice.nbytes > matrix.choices[hull[-1]].nbytes
        hull.append(index)
    return hull


def _slope(matrix: Matrix, costs: Sequence[float], first: int, second: int) -> float:
    return (costs[second] - costs[first]) / (matrix.choices[second].nbytes - matrix.choices[first].nbytes)


def search(
    sums: Sequence[float],
    nbytes: Sequence[int],
    measured: dict[int, float],
    bound: float,
    measure: Callable[[int], float],
) -> int:
    """How many steps to take: the fewest that were measured to stay under the bound.

    Between a number of steps that misses the bound and one that keeps it, the next is where the interpolated KL meets
    the bound, or halfway in bytes where interpolation has moved the same end twice.

    Args:
        sums: for each number of steps, the estimated costs added up; falling.
        nbytes: for each number of steps, the bytes; rising.
        measured: number of steps -> true KL; holds none, which misses the bound, and all, which keeps it; gets more.
        bound: mean KL.
        measure: number of steps -> true KL.
    """
    low, high, side = 0, len(sums) - 1, 0
    for _ in range(_MOST_RUNS):
        if high - low <= 1 or nbytes[high] - nbytes[low] <= _WORTH * nbytes[0]:
            break
        if abs(side) < 2:
            guess = next(i for i in range(low + 1, high + 1) if i == high or interpolated(sums, measured, i) <= bound)
        else:
            middle = (nbytes[low] + nbytes[high]) / 2
            guess = next(i for i in range(low + 1, high + 1) if nbytes[i] >= middle)
        guess = min(max(guess, low + 1), high - 1)
        measured[guess] = measure(guess)
        if measured[guess] <= bound:
            high, side = guess, max(side, 0) + 1
        else:
            low, side = guess, min(side, 0) - 1
        if abs(side) > 2:
            side = 0
    return high


def interpolated(sums: Sequence[float], measured: Mapping[int, float], index: int) -> float:
    """KL of a number of steps: between the measured neighbours, in proportion to the estimated costs."""
    if index in measured:
        return measured[index]
    low, high = max(i for i in measured if i < index), min(i for i in measured if i > index)
    whole = sums[low] - sums[high]
    share = (sums[low] - sums[index]) / whole if whole > 0 else (index - low) / (high - low)
    return measured[low] + (measured[high] - measured[low]) * share
