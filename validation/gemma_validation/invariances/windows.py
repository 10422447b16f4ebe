"""Which cached positions a layer reads: all of them, or those of its window and none outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES, ElementType
from gemma_runtime.manifest import Graph
from gemma_validation.artifact import Cache, load_graph
from gemma_validation.invariances.scene import Scene
from gemma_validation.metrics.finite import require_finite

__all__ = ["layer_windows", "other_values", "unread_positions"]

Logits = npt.NDArray[np.float32]
_LARGEST = {"float16": 65504.0, "int8": 127.0}


def layer_windows(directory: Path, graph: Graph) -> dict[int, int]:
    """Layer -> positions that a token sees, itself included; 0 where it sees all of them."""
    model = load_graph(directory / graph.file)
    windows = {state.layer: 0 for state in graph.state}
    producers = {name: node for node in model.graph.node for name in node.output}
    for state in graph.state:
        # what reads the mask where attention is written out; elsewhere what writes the cache
        node = producers.get(f"model.layers.{state.layer}.self_attn.seen", producers[state.present[0]])
        for attribute in node.attribute:
            if attribute.name in ("local_window_size", "window"):
                windows[state.layer] = max(0, attribute.i)
        # the standard operator, and attention that is written out, have their window in the mask
        for name in node.input:
            if name.startswith("attention.visible_window_"):
                windows[state.layer] = int(name.rpartition("_")[2])
    return windows


def unread_positions(scene: Scene, windows: Mapping[int, int]) -> str | None:
    """Changes single keys and values in the cache of one layer at a time and looks whether the next logits move.

    Outside a layer's window nothing may move, not by a bit: it is not read. Just inside, and at the oldest position of
    a layer without a window, something must. Every layer is looked at by itself, which other tokens could not do:
    what they change reaches a windowed layer through those below it.

    Args:
        scene: an opened graph.
        windows: see `layer_windows`.

    Returns:
        What is wrong, or None.

    Raises:
        NotFinite: the step behind the unchanged cache computes what is no number, which never equals itself.
    """
    longest = max(windows.values(), default=0)
    length = min(max(longest + 8, 24), scene.runner.context_length - 1)
    past = _made_up(scene, length)
    expected = _next_logits(scene, past, length)
    # of the opposite values, four times as large, no number is promised
    require_finite(expected[0], np.array([length]), side="test", document="a made-up cache")
    for layer, window in sorted(windows.items()):
        # of the positions before this one a window holds one less than its size: the last is the token's own
        oldest = length - window + 1 if window else 0
        if window and oldest > 0 and not np.array_equal(_changed(scene, past, layer, oldest - 1, length), expected):
            return f"layer {layer} reads position {oldest - 1} of {length}, outside its window of {window}"
        if 0 <= oldest < length and np.array_equal(_changed(scene, past, layer, oldest, length), expected):
            return f"layer {layer} does not read position {oldest} of {length}, inside its window of {window or 'all'}"
    return None


def _made_up(scene: Scene, length: int) -> Cache:
    """A cache of any length for the price of none: the prompt's keys and values, repeated."""
    return tuple(array[:, :, np.arange(length) % array.shape[2]] for array in scene.whole.present)


def _changed(scene: Scene, past: Cache, layer: int, position: int, length: int) -> Logits:
    states = [(state.layer, state.dtype) for state in scene.runner.graph.state for _ in state.past]
    changed = []
    for (owner, dtype), array in zip(states, past, strict=True):
        if owner == layer:
            array = array.copy()
            array[:, :, position] = other_values(array[:, :, position], ELEMENT_TYPES[dtype])
        changed.append(array)
    return _next_logits(scene, tuple(changed), length)


def other_values(values: npt.NDArray[Any], element: ElementType) -> npt.NDArray[Any]:
    """Opposite keys and values, four times as large: whatever attention there was, now there is another."""
    loud = element.to_float32(values) * np.float32(-4)
    if element.name == "bfloat16":
        return (loud.view(np.uint32) >> 16).astype(np.uint16)
    limit = _LARGEST.get(element.name, np.inf)
    changed: npt.NDArray[Any] = np.clip(loud, -limit, limit).astype(element.storage)
    return changed


def _next_logits(scene: Scene, past: Cache, length: int) -> Logits:
    step = scene.runner.step(np.array([scene.prompt[:1]], np.int64), np.ones((1, length + 1), np.int64), past)
    return step.logits
