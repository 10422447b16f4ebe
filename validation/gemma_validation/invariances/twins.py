"""Graphs of one folder against the one that gives all positions: they differ in what they offer, not in a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemma_validation.artifact import ArtifactRunner, Cache, Step
from gemma_validation.invariances.differences import Difference, cache_difference, logits_difference, row_cache
from gemma_validation.invariances.scene import Asked, Scene, padded

__all__ = ["batched_chunks", "same_steps", "static_step"]


def same_steps(scene: Scene, twin: ArtifactRunner) -> Difference:
    """The steps of `Scene.asked` in the same shapes: prompts and padded rows, and tokens behind the cache of either.

    A twin's positions are the last ones; its cache is the other graph's, so that either may go on with it, or of layers
    that keep their window only the end of it.
    """
    worst = Difference(logits=0.0)
    for asked in scene.asked:
        if (asked.is_chunk and not twin.chunked) or (asked.is_padded_prompt and not _takes_padded_prompts(twin)):
            continue
        found = twin.step(asked.input_ids, asked.attention_mask, _held(twin, asked))
        columns = asked.attention_mask[:, -asked.input_ids.shape[1] :]
        for row, mask in enumerate(asked.attention_mask):
            expected = asked.step.logits[row][columns[row] == 1]
            logits = _own(twin, found, row, columns)
            # a row that is shorter than the positions asked for has its own at the right end
            count = min(len(logits), len(expected))
            difference = Difference(
                logits=logits_difference(logits[-count:], expected[-count:]),
                cache=cache_difference(
                    row_cache(twin.manifest, twin.graph, found.present, row, mask),
                    _ends(twin, scene.real_cache(asked.step, row, mask)),
                ),
            )
            worst = worst.worst(difference)
    return worst


def batched_chunks(scene: Scene, twin: ArtifactRunner) -> Difference:
    """Several rows in two steps of several tokens, padded left and right: each row's last position."""
    alone = scene.alone[-len(scene.few) :]
    middles = [max(1, len(row) // 3) for row in scene.few]
    worst = Difference(logits=0.0)
    for sides in (("left", "right"), ("right", "left")):
        ids, mask = padded([row[:cut] for row, cut in zip(scene.few, middles, strict=True)], sides[0])
        past = twin.step(ids, mask).present
        ids, more = padded([row[cut:] for row, cut in zip(scene.few, middles, strict=True)], sides[1])
        mask = np.concatenate((mask, more), axis=1)
        found = twin.step(ids, mask, past)
        for index, (row, expected) in enumerate(zip(scene.few, alone, strict=True)):
            held = row_cache(twin.manifest, twin.graph, found.present, index, mask[index])
            difference = Difference(
                logits=logits_difference(_own(twin, found, index, more)[-1:], expected.logits[0, -1:]),
                cache=cache_difference(held, scene.real_cache(expected, 0, np.ones(len(row), np.int64))),
            )
            worst = worst.worst(difference)
    return worst


def static_step(scene: Scene, twin: ArtifactRunner) -> Difference:
    """Single tokens over a buffer of full capacity, behind the cache that another graph has made."""
    read = max(1, len(scene.prompt) - 3)
    # with room behind the last token, which must not be read; no buffer is longer than the context
    capacity = min(twin.context_length, len(scene.prompt) + 9)
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


def _takes_padded_prompts(twin: ArtifactRunner) -> bool:
    """A window-sized cache is there from the first token on: a prompt of several rows is a chunk of them."""
    return not twin.graph.windowed or twin.graph.chunks == "batched"


def _held(twin: ArtifactRunner, asked: Asked) -> Cache | None:
    """The past as the twin takes it: of a window-sized tensor each row's last tokens, from the beginning on."""
    if asked.past is None or not twin.graph.windowed:
        return asked.past
    counts = asked.attention_mask[:, : -asked.input_ids.shape[1]].sum(axis=1)
    held = twin.empty(len(counts), asked.past[0].shape[2])
    states = [state for state in twin.graph.state for _ in state.past]
    for state, own, array in zip(states, held, asked.past, strict=True):
        for row, count in enumerate(counts):
            kept = min(count, state.window) if state.windowed else count
            own[row, :, :kept] = array[row, :, count - kept : count]
    return held


def _ends(twin: ArtifactRunner, rows: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    """What the twin keeps of one row's keys and values."""
    states = [state for state in twin.graph.state for _ in state.past]
    return [
        values[:, -state.window :] if state.windowed else values for state, values in zip(states, rows, strict=True)
    ]


def _own(twin: ArtifactRunner, found: Step, row: int, mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """A row's logits without its padding: of a graph that gives every column, those of real tokens."""
    logits: npt.NDArray[np.float32] = found.logits[row]
    return logits[mask[row] == 1] if twin.graph.logits == "all" else logits
