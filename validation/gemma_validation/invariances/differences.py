"""Distances between two runs of the same tokens, and the check that they make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES
from gemma_runtime.manifest import Graph, Manifest
from gemma_validation.artifact import Cache
from gemma_validation.findings import Check
from gemma_validation.invariances.bounds import Bounds

__all__ = ["Difference", "cache_difference", "logits_difference", "passed", "row_cache", "skipped"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """What an invariance measured; NaN where a value is not finite."""

    # largest over positions: root mean square of the difference over the vocabulary, in standard deviations of the
    # logits expected there. A maximum over the vocabulary would grow with it and say the same.
    logits: float
    # largest over positions and tensors: root mean square of the difference, relative to that of the whole tensor
    cache: float = 0.0
    # something that no distance says: a shape, a change that had no effect
    wrong: str | None = None

    def worst(self, other: Difference) -> Difference:
        """Of two."""
        return Difference(
            # NaN stays, which max() would drop when it comes second
            logits=float(np.maximum(self.logits, other.logits)),
            cache=float(np.maximum(self.cache, other.cache)),
            wrong=self.wrong or other.wrong,
        )

    def judged(self, name: str, bounds: Bounds) -> Check:
        """The check; the quantity nearer to its bound is the one reported."""
        shares = {"logits": self.logits / bounds.logits, "cache": self.cache / bounds.cache}
        what = max(shares, key=lambda key: math.inf if math.isnan(shares[key]) else shares[key])
        measured, bound = getattr(self, what), getattr(bounds, what)
        finite = not math.isnan(measured)
        told = {
            "logits": f"logits differ by {measured:.2g} standard deviations",
            "cache": f"cache differs by {measured:.2g} of its size",
        }
        message = self.wrong or f"{told[what]}, at most {bound:.2g}: {bounds.reason}"
        if not finite:
            message = f"{what}: not finite"
        good = finite and self.wrong is None and measured <= bound
        return Check(
            group="invariance",
            name=name,
            outcome="passed" if good else "failed",
            message=message,
            measured=measured if finite else None,
            bound=bound,
            finite=finite,
        )


def logits_difference(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """See `Difference.logits`; NaN where either is not finite.

    Args:
        found, expected: [positions, vocab_size].
    """
    assert found.shape == expected.shape
    worst = 0.0
    # row by row: float64 copies of a whole prompt would take gigabytes
    for first, second in zip(found, expected, strict=True):
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            return math.nan
        wide = second.astype(np.float64)
        deviation = float(wide.std())
        size = float(np.sqrt(np.mean((first - wide) ** 2)))
        worst = max(worst, size / deviation if deviation else math.inf * size if size else 0.0)
    return worst


def cache_difference(found: Iterable[npt.NDArray[np.float32]], expected: Iterable[npt.NDArray[np.float32]]) -> float:
    """See `Difference.cache`; NaN where either is not finite.

    Args:
        found, expected: of one row, [kv_heads, positions, head_dim] each.
    """
    worst = 0.0
    for first, second in zip(found, expected, strict=True):
        assert first.shape == second.shape
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            return math.nan
        scale = float(np.sqrt(np.mean(np.square(second, dtype=np.float64)))) or 1.0
        sizes = np.sqrt(np.mean(np.square(first - second, dtype=np.float64), axis=(0, 2)))
        worst = max(worst, float(sizes.max(initial=0.0)) / scale)
    return worst


def row_cache(
    manifest: Manifest, graph: Graph, cache: Cache, row: int, mask: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.float32]]:
    """One row's keys and values of real tokens, in their order.

    Args:
        manifest: says where they lie: at the beginning, or in the mask's columns.
        graph: whose state it is.
        cache: what a step returned.
        row: of the batch.
        mask: [total_sequence_length] of that row.

    Returns:
        [kv_heads, tokens, head_dim] for each tensor; of a window-sized one the window's last tokens.
    """
    columns = np.arange(int(mask.sum())) if manifest.cache_layout == "compacted" else np.flatnonzero(mask)
    states = [state for state in graph.state for _ in state.past]
    rows: list[npt.NDArray[Any]] = [
        array[row][:, columns[: state.window] if state.windowed else columns]
        for state, array in zip(states, cache, strict=True)
    ]
    return [ELEMENT_TYPES[state.dtype].to_float32(values) for state, values in zip(states, rows, strict=True)]


def passed(name: str, message: str) -> Check:
    """Where there is nothing to measure."""
    return Check(group="invariance", name=name, outcome="passed", message=message)


def skipped(name: str, why: str) -> Check:
    """What this folder cannot be asked."""
    return Check(group="invariance", name=name, outcome="skipped", message=why)
