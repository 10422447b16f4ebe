"""One row: whole, in parts, with another end, in a buffer of its own, with another cache."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gemma_validation.artifact import Step
from gemma_validation.invariances.differences import Difference, cache_difference, logits_difference, row_cache
from gemma_validation.invariances.scene import Scene
from gemma_validation.metrics.finite import require_finite

__all__ = ["in_parts", "in_place", "later_tokens", "state_symbols"]


def in_parts(scene: Scene, size: int) -> Difference:
    """The prompt in steps of `size` tokens gives the logits and the cache of one run; its beginning in small ones."""
    tokens, past = scene.beginning if size < len(scene.beginning) else scene.prompt, None
    logits = []
    for first in range(0, len(tokens), size):
        part = np.array([tokens[first : first + size]], np.int64)
        step = scene.runner.step(part, np.ones((1, first + part.shape[1]), np.int64), past)
        past = step.present
        logits.append(logits_difference(step.logits[0], scene.whole.logits[0, first : first + part.shape[1]]))
    cache = cache_difference(scene.real_cache(step, 0, np.ones(len(tokens), np.int64)), _first(scene, len(tokens)))
    return Difference(logits=float(np.max(logits)), cache=cache)


def later_tokens(scene: Scene) -> Difference:
    """Other tokens at the end change nothing before them, and something after."""
    length = len(scene.beginning)
    kept = max(1, length * 2 // 3)
    changed = [(token + 1) % scene.runner.vocab_size for token in scene.beginning[kept:]]
    step = scene.run([*scene.beginning[:kept], *changed])
    held = [tensor[:, :kept] for tensor in scene.real_cache(step, 0, np.ones(length, np.int64))]
    moved = logits_difference(step.logits[0, kept:], scene.whole.logits[0, kept:length])
    kept_logits = logits_difference(step.logits[0, :kept], scene.whole.logits[0, :kept])
    return Difference(
        # behind the change any number will do, but it has to be one
        logits=math.nan if math.isnan(moved) else kept_logits,
        cache=cache_difference(held, _first(scene, kept)),
        wrong=None if moved else "other tokens at the end change nothing at all",
    )


def in_place(scene: Scene) -> Difference:
    """Past and present in one buffer: a prompt, then single tokens, as generation does."""
    runner, tokens = scene.runner, scene.beginning
    # with room behind the last token, which must not be read
    state = runner.state_in_place(1, min(runner.context_length, len(tokens) + 9))
    read = max(1, len(tokens) - 3)
    logits = 0.0
    for first, last in [(0, read), *((index, index + 1) for index in range(read, len(tokens)))]:
        found = runner.step_in_place(np.array([tokens[first:last]], np.int64), np.ones((1, last), np.int64), state)
        logits = float(np.maximum(logits, logits_difference(found[0], scene.whole.logits[0, first:last])))
    mask = np.ones(len(tokens), np.int64)
    held = row_cache(runner.manifest, runner.graph, tuple(buffer.memory for buffer in state.buffers), 0, mask)
    return Difference(logits=logits, cache=cache_difference(held, _first(scene, len(tokens))))


def _first(scene: Scene, length: int) -> list[npt.NDArray[np.float32]]:
    """Keys and values of the prompt's first tokens, of one run."""
    whole = scene.real_cache(scene.whole, 0, np.ones(len(scene.prompt), np.int64))
    return [tensor[:, :length] for tensor in whole]


def state_symbols(scene: Scene) -> str | None:
    """The state's dimensions are what their symbols say, with and without a cache; else what is wrong.

    Raises:
        NotFinite: the step behind the cache computes what is no number.
    """
    length = len(scene.beginning)
    # first: a cache of another shape is no cache to go on with
    wrong = _wrong_shape(scene, scene.begun, length)
    if wrong is not None:
        return wrong
    last = scene.runner.step(
        np.array([scene.beginning[-1:]], np.int64), np.ones((1, length + 1), np.int64), scene.begun.present
    )
    require_finite(last.logits[0], np.array([length]), side="test", document="a prompt and one token more")
    return _wrong_shape(scene, last, length + 1)


def _wrong_shape(scene: Scene, step: Step, total: int) -> str | None:
    graph = scene.runner.graph
    symbols = {"batch_size": 1, "past_sequence_length": total}
    expected = [
        tuple(dim if isinstance(dim, int) else symbols[dim] for dim in state.shape)
        for state in graph.state
        for _ in state.past
    ]
    names = [name for state in graph.state for name in state.present]
    for name, shape, array in zip(names, expected, step.present, strict=True):
        if array.shape != shape:
            return f"{name} is {list(array.shape)} after {total} tokens, expected {list(shape)}"
    return None
