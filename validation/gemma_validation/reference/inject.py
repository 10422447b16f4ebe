"""Caches exchanged between reference and export: each side goes on from the other's keys and values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.artifact import Cache as ArtifactCache
from gemma_validation.documents import Document
from gemma_validation.findings import Check
from gemma_validation.reference.source import Cache, CacheSource, ReferenceSource

__all__ = ["INTO_ARTIFACT", "INTO_REFERENCE", "ask_injection", "not_exchanged"]

INTO_ARTIFACT, INTO_REFERENCE = "reference cache into artifact", "artifact cache into reference"

# Tokens after the cache: one by one, so that every position of a decode step is looked at.
_AFTER = 8
_FLOATING = ("float32", "float16", "bfloat16")
# Distance (root mean square, over the reference's own) that counts as the same, by the type of activations and cache.
# float32: summation order, about 1e-6 a layer. float16 and bfloat16: 11 and 8 bits of mantissa through some layers,
# and the reference's cache is rounded to them. A cache with keys and values exchanged, or one position off, is at 0.1
# to 1.
_ROUNDING = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8 * 2e-2}
# Half of what a mixed run computes is the reference's, so it should be no farther from the reference than the export
# itself is; the two halves' errors are independent, so now and then it is.
_OWN_DISTANCE = 2.0


def ask_injection(
    source: ReferenceSource, runner: ArtifactRunner, document: Document
) -> Callable[[], tuple[Check, ...]]:
    """Runs the document's last tokens on each side behind the other side's cache of those before them.

    Both results are held against the reference's plain logits. The bound is the precision's rounding, or twice the
    distance of the export's own plain logits, so that what quantised weights cost does not count here.

    Args:
        source: the reference. Asked before it is prepared, one that is read layer by layer is not read again for this.
        runner: over the graph with all positions.
        document: at least two tokens.

    Returns:
        What gives two checks of group "invariance"; skipped where another folder is the reference, or the cache holds
        integers.
    """
    dtypes = sorted({state.dtype for state in runner.graph.state})
    reason = None
    if not isinstance(source, CacheSource):
        reason = f"the reference shows no keys and values ({source.about.kind})"
    elif not set(dtypes) <= set(_FLOATING):
        reason = f"the cache holds {', '.join(dtypes)}, which only the export's scales explain"
    elif len(document.token_ids) < 2:
        reason = "the document has no two tokens"
    if reason is not None or not isinstance(source, CacheSource):
        return functools.partial(not_exchanged, reason or "")
    head = document.token_ids[: max(1, len(document.token_ids) - _AFTER)]
    _, cache = _run(runner, None, 0, head)
    source.exchange(document.token_ids, _float32(cache, _types(runner)))
    return functools.partial(_judged, source, runner, document.token_ids, len(head))


def _judged(source: CacheSource, runner: ArtifactRunner, token_ids: tuple[int, ...], split: int) -> tuple[Check, ...]:
    found = source.exchanged()
    plain, _ = _run(runner, None, 0, token_ids)
    dtypes = {state.dtype for state in runner.graph.state}
    rounding = max(_ROUNDING[dtype] for dtype in (*dtypes, runner.manifest.precision.activation_dtype))
    own = _distance(plain[split:], found.plain) if _finite(plain, found.plain) else 0.0
    bound = max(rounding, _OWN_DISTANCE * own)
    into_artifact, _ = _run(runner, _stored(found.cache, _types(runner)), split, token_ids[split:])
    return (
        _check(INTO_ARTIFACT, into_artifact, found.plain, bound),
        _check(INTO_REFERENCE, found.behind, found.plain, bound),
    )


def not_exchanged(reason: str) -> tuple[Check, ...]:
    """Both checks as skipped, so that a report tells of them, and why."""
    return tuple(
        Check(group="invariance", name=name, outcome="skipped", message=f"not run: {reason}")
        for name in (INTO_ARTIFACT, INTO_REFERENCE)
    )


def _run(
    runner: ArtifactRunner, cache: ArtifactCache | None, before: int, token_ids: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], ArtifactCache]:
    """Logits [tokens, vocab_size] behind a cache of `before` tokens, and the cache with them; one shot if that is 0."""
    size = len(token_ids) if before == 0 else 1
    rows = []
    for first in range(0, len(token_ids), size):
        part = np.array([token_ids[first : first + size]], np.int64)
        step = runner.step(part, np.ones((1, before + first + size), np.int64), cache)
        cache = step.present
        rows.append(step.logits[0])
    assert cache is not None
    return np.concatenate(rows), cache


def _types(runner: ArtifactRunner) -> list[ElementType]:
    return [ELEMENT_TYPES[state.dtype] for state in runner.graph.state for _ in state.past]


def _stored(cache: Cache, types: list[ElementType]) -> ArtifactCache:
    """The reference's cache as the graph stores it: rounded to nearest where that is narrower."""
    parts: list[npt.NDArray[Any]] = []
    for part, element in zip(cache, types, strict=True):
        if element.is_numpy:
            parts.append(part.astype(element.storage))
        else:
            # bfloat16 is the upper half of a float32, rounded to even
            bits = np.ascontiguousarray(part).view(np.uint32)
            parts.append(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(element.storage))
    return tuple(parts)


def _float32(cache: ArtifactCache, types: list[ElementType]) -> Cache:
    return tuple(element.to_float32(part) for part, element in zip(cache, types, strict=True))


def _distance(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Root mean square of the difference over that of the expected logits, each row less its mean."""
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    wide, other = wide - wide.mean(-1, keepdims=True), other - other.mean(-1, keepdims=True)
    return float(np.sqrt(np.square(other - wide).mean() / np.square(wide).mean()))


def _finite(*logits: npt.NDArray[np.float32]) -> bool:
    return all(bool(np.isfinite(rows).all()) for rows in logits)


def _check(name: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], bound: float) -> Check:
    if not _finite(found, expected):
        message = f"{len(found)} tokens behind the cache: logits are not finite"
        return Check(group="invariance", name=name, outcome="failed", message=message, bound=bound, finite=False)
    distance = _distance(found, expected)
    return Check(
        group="invariance",
        name=name,
        outcome="passed" if distance <= bound else "failed",
        message=f"{len(found)} tokens behind the cache: logits are {distance:.2g} of their size from the reference's, "
        f"at most {bound:.2g} passes",
        measured=distance,
        bound=bound,
    )
