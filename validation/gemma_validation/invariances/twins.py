"""Graphs of one folder against the one that gives all positions: they differ in what they offer, not in a number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemma_validation.artifact import ArtifactRunner, Step
from gemma_validation.invariances.differences import Difference, cache_difference, logits_difference, row_cache
from gemma_validation.invariances.scene import Scene, padded

__all__ = ["batched_chunks", "last_positions", "static_step"]


def last_positions(scene: Scene, twin: ArtifactRunner) -> Difference:
    """A prompt, and rows padded on either side: the twin's positions are the last ones of all of them."""
    mask = np.ones((1, len(scene.prompt)), np.int64)
    step = twin.step(np.array([scene.prompt], np.int64), mask)
    worst = _last_of(_own(twin, step, 0, mask), scene.whole, len(scene.prompt))
    for side in ("left", "right"):
        ids, mask = padded([row[:-1] for row in scene.rows], side)
        found = twin.step(ids, mask)
        for index, (row, alone) in enumerate(zip(scene.rows, scene.alone, strict=True)):
            worst = worst.worst(_last_of(_own(twin, found, index, mask), alone, len(row) - 1))
    return worst


def batched_chunks(scene: Scene, twin: ArtifactRunner) -> Difference:
    """Several rows in two steps of several tokens, padded left and right: each row's last position."""
    middles = [max(1, len(row) // 3) for row in scene.rows]
    worst = Difference(logits=0.0)
    for sides in (("left", "right"), ("right", "left")):
        ids, mask = padded([row[:cut] for row, cut in zip(scene.rows, middles, strict=True)], sides[0])
        past = twin.step(ids, mask).present
        ids, more = padded([row[cut:] for row, cut in zip(scene.rows, middles, strict=True)], sides[1])
        mask = np.concatenate((mask, more), axis=1)
        found = twin.step(ids, mask, past)
        for index, (row, alone) in enumerate(zip(scene.rows, scene.alone, strict=True)):
            held = row_cache(twin.manifest, twin.graph, found.present, index, mask[index])
            difference = Difference(
                logits=logits_difference(_own(twin, found, index, more)[-1:], alone.logits[0, -1:]),
                cache=cache_difference(held, scene.real_cache(alone, 0, np.ones(len(row), np.int64))),
            )
            worst = worst.worst(difference)
    return worst


def static_step(scene: Scene, twin: ArtifactRunner) -> Difference:
    """Single tokens over a buffer of full capacity, behind the cache that another graph has made."""
    read = max(1, len(scene.prompt) - 3)
    capacity = len(scene.prompt) + 9
    state = twin.state_in_place(1, capacity)
    for (_, _, buffer), array in zip(state.named(), scene.whole.present, strict=True):
        values = np.zeros(buffer.shape, array.dtype)
        values[:, :, :read] = array[:, :, :read]
        buffer.fill(values)
    logits = 0.0
    for index in range(read, len(scene.prompt)):
        mask = (np.arange(capacity) <= index).astype(np.int64)[None]
        found = twin.step_in_place(np.array([scene.prompt[index : index + 1]], np.int64), mask, state)
        expected = scene.whole.logits[0, index : index + 1]
        logits = float(np.maximum(logits, logits_difference(found[0], expected)))
    mask = np.ones(len(scene.prompt), np.int64)
    held = row_cache(twin.manifest, twin.graph, tuple(buffer.memory for buffer in state.buffers), 0, mask)
    return Difference(logits=logits, cache=cache_difference(held, scene.real_cache(scene.whole, 0, mask)))


def _own(twin: ArtifactRunner, found: Step, row: int, mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """A row's logits without its padding: of a graph that gives every column, those of real tokens."""
    logits: npt.NDArray[np.float32] = found.logits[row]
    return logits[mask[row] == 1] if twin.graph.logits == "all" else logits


def _last_of(logits: npt.NDArray[np.float32], expected: Step, length: int) -> Difference:
    # a row that is shorter than the positions asked for has its own at the right end
    count = min(len(logits), length)
    return Difference(logits=logits_difference(logits[-count:], expected.logits[0, length - count : length]))
