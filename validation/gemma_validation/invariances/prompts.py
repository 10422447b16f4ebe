"""One row: whole, in parts, with another end, in a buffer of its own, with another cache."""

from __future__ import annotations

import math

import numpy as np

from gemma_validation.artifact import Step
from gemma_validation.invariances.differences import Difference, cache_difference, logits_difference, row_cache
from gemma_validation.invariances.scene import Scene
from gemma_validation.metrics.finite import require_finite

__all__ = ["in_parts", "in_place", "later_tokens", "state_symbols"]


def in_parts(scene: Scene, size: int) -> Difference:
    """The prompt in steps of `size` tokens gives the logits and the cache of one run."""
    tokens, past = scene.prompt, None
    logits = []
    for first in range(0, len(tokens), size):
        part = np.array([tokens[first : first + size]], np.int64)
        step = scene.runner.step(part, np.ones((1, first + part.shape[1]), np.int64), past)
        past = step.present
        logits.append(logits_difference(step.logits[0], scene.whole.logits[0, first : first + size]))
    mask = np.ones(len(tokens), np.int64)
    cache = cache_difference(scene.real_cache(step, 0, mask), scene.real_cache(scene.whole, 0, mask))
    return Difference(logits=float(np.max(logits)), cache=cache)


def later_tokens(scene: Scene) -> Difference:
    """Other tokens at the end change nothing before them, and something after."""
    kept = max(1, len(scene.prompt) * 2 // 3)
    changed = [(token + 1) % scene.runner.vocab_size for token in scene.prompt[kept:]]
    step = scene.run([*scene.prompt[:kept], *changed])
    mask = np.ones(len(scene.prompt), np.int64)
    before, after = ([tensor[:, :kept] for tensor in scene.real_cache(run, 0, mask)] for run in (step, scene.whole))
    moved = logits_difference(step.logits[0, kept:], scene.whole.logits[0, kept:])
    kept_logits = logits_difference(step.logits[0, :kept], scene.whole.logits[0, :kept])
    return Difference(
        # behind the change any number will do, but it has to be one
        logits=math.nan if math.isnan(moved) else kept_logits,
        cache=cache_difference(before, after),
        wrong=None if moved else "other tokens at the end change nothing at all",
    )


def in_place(scene: Scene) -> Difference:
    """Past and present in one buffer: a prompt, then single tokens, as generation does."""
    runner, tokens = scene.runner, scene.prompt
    # with room behind the last token, which must not be read
    state = runner.state_in_place(1, min(runner.context_length, len(tokens) + 9))
    read = max(1, len(tokens) - 3)
    logits = 0.0
    for first, last in [(0, read), *((index, index + 1) for index in range(read, len(tokens)))]:
        found = runner.step_in_place(np.array([tokens[first:last]], np.int64), np.ones((1, last), np.int64), state)
        logits = float(np.maximum(logits, logits_difference(found[0], scene.whole.logits[0, first:last])))
    mask = np.ones(len(tokens), np.int64)
    held = row_cache(runner.manifest, runner.graph, tuple(buffer.memory for buffer in state.buffers), 0, mask)
    return Difference(logits=logits, cache=cache_difference(held, scene.real_cache(scene.whole, 0, mask)))


def state_symbols(scene: Scene) -> str | None:
    """The state's dimensions are what their symbols say, with and without a cache; else what is wrong.

    Raises:
        NotFinite: the step behind the cache computes what is no number.
    """
    length = len(scene.prompt)
    # first: a cache of another shape is no cache to go on with
    wrong = _wrong_shape(scene, scene.whole, length)
    if wrong is not None:
        return wrong
    last = scene.runner.step(
        np.array([scene.prompt[-1:]], np.int64), np.ones((1, length + 1), np.int64), scene.whole.present
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
